/* A constant for each channel is added, or multiplied with. */
typedef struct {
    const int32_t *constants; /* terms of a sum, or factors */
    uint8_t multiplies;
    int32_t high, from_zero, low, rounded; /* the factor of a sum's first term, as in a sum */
    uint8_t right;
    int8_t x_zero;
    scaling scale;
    extent channels, rows, pixels, x_row, x_plane, y_row, y_plane;
} channelwise;

static inline sum with_constant(const channelwise s, sum x, int32_t constant) {
    if (s.multiplies) return (x - s.x_zero) * constant;
    const int32_t h = x * s.high + s.from_zero + ((x * s.low + s.rounded) >> 11);
    return ((h + ((1 << s.right) >> 1) + (h >> 31)) >> s.right) + constant;
}
