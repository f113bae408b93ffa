typedef struct {
    float beta;
    extent count;
} normalizing;

static void softmax(const normalizing *s, const element *x, element *y) {
    float most = x[0], total = 0.0f;
    for (int i = 1; i < s->count; i++) {
        if (x[i] > most) most = x[i];
    }
    for (int i = 0; i < s->count; i++) {
        y[i] = exponential((x[i] - most) * s->beta);
        total += y[i];
    }
    for (int i = 0; i < s->count; i++) y[i] /= total;
}
