/* `strip` holds the sums of as many rows as are pooled; `z` is what a fused sum adds, or null. */
static void convolve(
    const convolution *layer, const element *x, const element *z, element *y, sum *strip) {
#if WIDE_SUMS && defined(__AVX2__)
    if (wide_convolve(layer, x, z, y)) return;
#endif
    reader r = start(layer->kernel);
    const int width = layer->pixels, pool = layer->pool_rows;
#if HAS_DEPTHWISE
    int next = 0; /* where the next plane begins */
#endif
    for (int filter = 0; filter < layer->filters; filter++) {
        sum begin = layer->biases[filter];
        const tap *end = decode(&r, layer, &begin);
#if HAS_DEPTHWISE
        if (layer->shared && filter == next) {
            x += filter ? layer->x_plane : 0;
            next += layer->shared;
        }
#endif
        for (int row = 0; row < layer->rows; row++) {
            element *to = y + filter * layer->y_plane + row * layer->y_row;
            for (int k = 0; k < pool; k++) {
                ROW(layer->stride, x + (row * pool + k) * layer->x_row, taps, end, begin,
                    strip + k * width, width);
            }
#if HAS_FUSED_ADD
            if (layer->add) {
                const addition *add = layer->add;
                finish_row(layer, strip, (element *)strip, width CHANNEL(filter));
                const element *own = (const element *)strip;
                const element *other = z + filter * add->b_plane + row * add->b_row;
                add_row(add, SWAPPED(add) ? other : own, SWAPPED(add) ? own : other, to, width);
                continue;
            }
#endif
            finish_row(layer, strip, to, width CHANNEL(filter));
        }
    }
    (void)z;
}
