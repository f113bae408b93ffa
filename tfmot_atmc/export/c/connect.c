/* Dense layers. */
typedef struct {
    weights kernel;
    const bias *biases;
    scaling scale;
#if IS_INTEGER
    int8_t x_zero; /* the code of 0.0 */
#endif
    extent columns, outputs, y_plane;
} connection;

/* One row's sum. */
static inline sum connect_row(
    reader *r, const weights w, const element *x, uint32_t columns, sum zero, const int packed) {
    reader s = *r;
    sum a = 0;
    (void)zero;
    while (s.position < columns) {
        const sum input = CENTERED(x[s.position], zero);
        a += next_weight(&s, w, packed) * input;
    }
    s.position -= columns;
    *r = s;
    return a;
}

static void connect(const connection *layer, const element *x, element *y) {
    const weights w = layer->kernel;
    const scaling q = layer->scale;
    const uint32_t columns = layer->columns;
#if IS_INTEGER
    const sum zero = layer->x_zero;
#else
    const sum zero = 0;
#endif
    reader r = start(w);
    for (int o = 0; o < layer->outputs; o++) {
        sum a = layer->biases[o];
#if HAS_DENSE_FORM
        if (w.form == 0) {
            for (uint32_t p = 0; p < columns; p++) {
#if HAS_VALUES
                const weight v = w.value_bits ? CODE(w, *r.next++) : *r.value++;
#else
                const weight v = CODE(w, *r.next++);
#endif
                a += v * CENTERED(x[p], zero);
            }
            y[o * layer->y_plane] = finish(a, scale_of(q, o));
            continue;
        }
#endif
#if HAS_BOTH_FORMS
        if (!IS_BITS(w)) {
            a += connect_row(&r, w, x, columns, zero, 0);
        } else
#endif
        {
            a += connect_row(&r, w, x, columns, zero, HAS_BITS);
        }
        y[o * layer->y_plane] = finish(a, scale_of(q, o));
    }
}
