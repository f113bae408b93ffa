/* Sums of two tensors, the second on the larger scale. Zero points are part of the constants. */
typedef struct {
    int32_t high, from_zero; /* the first one's multiplier, without its lowest bits */
    int32_t low, rounded;    /* these bits, and a half */
    int32_t second_zero;
    uint8_t right;
    uint8_t swapped; /* whether what a convolution computed is the second one */
    scaling scale;
    extent channels, rows, pixels, a_row, a_plane, b_row, b_plane, y_row, y_plane;
} addition;

static void add_row(
    const addition *add, const element *a, const element *b, element *y, int count) {
    const addition s = *add;
    const int32_t half = (1 << s.right) >> 1;
    for (int i = 0; i < count; i++) {
        /* (a * 2^20 * multiplier / 2^31) / 2^right, both rounded, without a 64-bit product. */
        const int32_t h = a[i] * s.high + s.from_zero + ((a[i] * s.low + s.rounded) >> 11);
        const int32_t first = (h + half + (h >> 31)) >> s.right;
        y[i] = finish(first + b[i] * (1 << 19) + s.second_zero, s.scale);
    }
}
