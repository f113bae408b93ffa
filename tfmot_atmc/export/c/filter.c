/* Convolutions: a filter's nonzeros are decoded once and used for all its outputs. */
typedef struct {
    weights kernel;
    const bias *biases;
    scaling scale;
#if IS_INTEGER
    int8_t x_zero; /* the code of 0.0 */
#endif
    extent columns;          /* weights of a filter, zeros included */
    extent area;             /* of the kernel in a plane */
    uint32_t by_area, by_width; /* 2^shift over them, rounded up */
    int32_t plane_skip, row_skip; /* from an index to an offset: for each plane, for each row */
    extent filters, x_row, x_plane, y_row, y_plane;
    extent rows, pixels;     /* of the output: rows after pooling, pixels before it */
    extent pool_rows, pool_pixels;
    uint8_t stride, shift;
    extent shared;           /* filters for one plane of a depthwise convolution; else 0 */
#if HAS_FUSED_ADD
    const addition *add;     /* the sum that is fused; or null */
#endif
} convolution;

/* Decodes one filter. Returns the end of its taps. */
static inline const tap *decode_filter(
    reader *r, const convolution *layer, sum *start, const int packed) {
    const weights w = layer->kernel;
    const uint32_t columns = layer->columns, area = layer->area;
    const uint32_t by_area = layer->by_area, by_width = layer->by_width;
    const uint32_t plane_skip = (uint32_t)layer->plane_skip, row_skip = (uint32_t)layer->row_skip;
    const int shift = layer->shift;
    uint32_t last = 0;
    reader s = *r;
    tap *t = taps;
#if IS_INTEGER
    sum total = 0;
#endif
    while (s.position < columns) {
        const uint32_t position = s.position;
        const uint32_t plane = (position * by_area) >> shift;
        const uint32_t row = ((position - plane * area) * by_width) >> shift;
        const weight v = next_weight(&s, w, packed);
#if HAS_ZERO_CODES
        if (v == 0) continue;
#endif
        const uint32_t offset = position + plane * plane_skip + row * row_skip;
        t->step = (tap_step)(offset - last);
        last = offset;
        t->value = v;
        t++;
#if IS_INTEGER
        total += v;
#endif
    }
    s.position -= columns;
    *r = s;
#if IS_INTEGER
    *start -= total * layer->x_zero;
#else
    (void)start;
#endif
    return t;
}

static const tap *decode(reader *r, const convolution *layer, sum *start) {
#if HAS_BOTH_FORMS
    if (!IS_BITS(layer->kernel)) return decode_filter(r, layer, start, 0);
#endif
    return decode_filter(r, layer, start, HAS_BITS);
}

/* Turns sums into elements, the largest of each pool where there is one. */
static void finish_row(
    const convolution *layer, const sum *a, element *y, int width CHANNEL(int filter)) {
    const scaling q = scale_of(layer->scale, filter);
#if HAS_POOL_OF_2
    if (layer->pool_rows == 2 && layer->pool_pixels == 2) {
        const sum *b = a + width;
        for (int i = 0; i < width / 2; i++, a += 2, b += 2) {
            sum most = a[0];
            if (a[1] > most) most = a[1];
            if (b[0] > most) most = b[0];
            if (b[1] > most) most = b[1];
            y[i] = finish(most, q);
        }
        return;
    }
#endif
#if HAS_OTHER_POOL
    if (layer->pool_rows * layer->pool_pixels > 1) {
        const int rows = layer->pool_rows, pixels = layer->pool_pixels;
        for (int i = 0; (i + 1) * pixels <= width; i++) {
            sum most = a[i * pixels];
            for (int r = 0; r < rows; r++) {
                for (int p = 0; p < pixels; p++) {
                    const sum other = a[r * width + i * pixels + p];
                    if (other > most) most = other;
                }
            }
            y[i] = finish(most, q);
        }
        return;
    }
#endif
    for (int i = 0; i < width; i++) y[i] = finish(a[i], q);
}
