/* A constant for each channel is added, or multiplied with. */
typedef struct {
    const float *constants;
    uint8_t multiplies;
    scaling scale;
    extent channels, rows, pixels, x_row, x_plane, y_row, y_plane;
} channelwise;

static inline sum with_constant(const channelwise s, sum x, float constant) {
    return s.multiplies ? x * constant : x + constant;
}
