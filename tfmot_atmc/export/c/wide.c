/* Convolutions on processors with AVX2: four times eight outputs at once, so that each weight is
   read once for 32. Weights are decoded in the first call, and kept. */
#if defined(__AVX2__)
typedef struct {
    const wide_tap *taps, *end;
    sum start;
} wide_filter;

typedef struct {
    const convolution *layer;
    const wide_filter *filters;
} wide_layer;

typedef struct {
    int32_t from, to; /* of eight outputs: offsets of their input, and of their sums */
} wide_place;

static wide_tap wide_taps[WIDE_TAPS];
static wide_filter wide_filters[WIDE_FILTERS];
static wide_layer wide_layers[WIDE_LAYERS];
static wide_place wide_places[WIDE_SUMS / 8 + 4];
static sum wide_plane[WIDE_SUMS + 32]; /* what is read beyond the last row counts nowhere */

/* The decoded filters of a layer. */
static const wide_filter *wide_decode(const convolution *layer) {
    static wide_tap *next_tap = wide_taps;
    static wide_filter *next_filter = wide_filters;
    wide_layer *known = wide_layers;
    while (known->layer && known->layer != layer) known++;
    if (!known->layer) {
        reader r = start(layer->kernel);
        known->filters = next_filter;
        for (int filter = 0; filter < layer->filters; filter++, next_filter++) {
            next_filter->start = layer->biases[filter];
            next_filter->taps = next_tap;
            const tap *end = decode(&r, layer, &next_filter->start);
            next_filter->end = next_tap = widen_taps(taps, end, next_tap);
        }
        known->layer = layer;
    }
    return known->filters;
}

/* Where the sums of a filter lie, eight by eight; returns how many there are, a multiple of 4. */
static int wide_layout(const convolution *layer) {
    const int width = layer->pixels, rows = layer->rows * layer->pool_rows;
    int count = 0;
    for (int row = 0; row < rows; row++) {
        for (int i = 0; i < width; i += 8) {
            /* The last eight of a row overlap the ones before. */
            const int at = i + 8 > width ? width - 8 : i;
            wide_places[count].from = row * layer->x_row + at * layer->stride;
            wide_places[count++].to = row * width + at;
        }
    }
    for (; count % 4; count++) wide_places[count] = wide_places[0];
    return count;
}

static inline void wide_sums(
    const wide_filter *filter, const element *x, int count, const int stride) {
    const wide_tap *const end = filter->end;
    for (const wide_place *s = wide_places; s != wide_places + count; s += 4) {
        const element *const p0 = x + s[0].from, *const p1 = x + s[1].from;
        const element *const p2 = x + s[2].from, *const p3 = x + s[3].from;
        lanes a0 = wide_start(filter->start), a1 = a0, a2 = a0, a3 = a0;
        for (const wide_tap *t = filter->taps; t != end; t++) {
            const lanes weight = wide_weight(t);
            a0 = wide_add(a0, p0, t, weight, stride);
            a1 = wide_add(a1, p1, t, weight, stride);
            a2 = wide_add(a2, p2, t, weight, stride);
            a3 = wide_add(a3, p3, t, weight, stride);
        }
        wide_keep(wide_plane + s[0].to, a0);
        wide_keep(wide_plane + s[1].to, a1);
        wide_keep(wide_plane + s[2].to, a2);
        wide_keep(wide_plane + s[3].to, a3);
    }
}

/* One row of outputs. */
static inline void wide_row(const convolution *layer, const scaling q, const sum *a,
                            const element *z, element *y, int width) {
#if HAS_POOL_OF_2
    if (layer->pool_rows == 2) {
        const sum *b = a + width;
        for (int i = 0; i < width / 2; i += 8, a += 16, b += 16) {
            const lanes first = wide_most(wide_load(a), wide_load(b));
            const lanes second = wide_most(wide_load(a + 8), wide_load(b + 8));
            wide_store(y + i, wide_finish(wide_halve(first, second), q), width / 2 - i);
        }
        return;
    }
#endif
    for (int i = 0; i < width; i += 8) {
        lanes v = wide_finish(wide_load(a + i), q);
#if HAS_FUSED_ADD
        if (layer->add) v = wide_total(layer->add, v, wide_elements(z + i, width - i));
#endif
        wide_store(y + i, v, width - i);
    }
    (void)layer;
    (void)z;
}

/* Tells whether a layer has a layout for this, and computes it. */
static int wide_convolve(
    const convolution *layer, const element *x, const element *z, element *y) {
    const int width = layer->pixels, pool = layer->pool_rows;
    if (width < 8 || layer->stride > 2 || pool > 2 || layer->pool_pixels != pool) return 0;
    const wide_filter *filters = wide_decode(layer);
    const int count = wide_layout(layer);
#if HAS_DEPTHWISE
    int next = layer->shared; /* where the next plane begins */
#endif
    for (int filter = 0; filter < layer->filters; filter++) {
#if HAS_DEPTHWISE
        if (layer->shared && filter == next) {
            x += layer->x_plane;
            next += layer->shared;
        }
#endif
        if (layer->stride == 1) {
            wide_sums(filters + filter, x, count, 1);
        } else {
            wide_sums(filters + filter, x, count, 2);
        }
        for (int row = 0; row < layer->rows; row++) {
            const element *other = z;
#if HAS_FUSED_ADD
            if (layer->add) other = z + filter * layer->add->b_plane + row * layer->add->b_row;
#endif
            wide_row(layer, scale_of(layer->scale, filter), wide_plane + row * pool * width,
                     other, y + filter * layer->y_plane + row * layer->y_row, width);
        }
    }
    return 1;
}
#endif
