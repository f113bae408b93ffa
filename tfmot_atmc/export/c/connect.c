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

static void connect(const connection *layer, const element *x, element *y) {
    const weights w = layer->kernel;
    const scaling q = layer->scale;
    const uint32_t columns = layer->columns;
#if IS_INTEGER
    const sum zero = layer->x_zero;
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
            y[o * layer->y_plane] = finish(a, q);
            continue;
        }
#endif
        while (r.position < columns) {
            const sum input = CENTERED(x[r.position], zero);
            a += next_weight(&r, w) * input;
        }
        r.position -= columns;
        y[o * layer->y_plane] = finish(a, q);
    }
}
