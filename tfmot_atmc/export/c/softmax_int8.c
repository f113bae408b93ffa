/* Softmax over codes: exponentials from a table, by the distance from the largest code. */
typedef struct {
    const int32_t *table; /* exp with 31 fraction bits */
    extent count, distances;
} normalizing;

static int32_t four_times(int32_t v) {
    if (v > INT32_MAX / 4) return INT32_MAX;
    return v < INT32_MIN / 4 ? INT32_MIN : v * 4;
}

/* 1 / (1 + a) with 31 fraction bits, for a in [0, 1): three steps of Newton's method. */
static int32_t reciprocal(int32_t a) {
    const int32_t half = (int32_t)(((uint32_t)a + 0x80000000u) >> 1);
    int32_t v = 1515870810 + product(half, -1010580540);
    for (int i = 0; i < 3; i++) v += four_times(product(v, (1 << 29) - product(half, v)));
    return v > INT32_MAX / 2 ? INT32_MAX : 2 * v;
}

static void softmax(const normalizing *s, const element *x, element *y) {
    int most = -128, unit = 0;
    int32_t total = 0;
    for (int i = 0; i < s->count; i++) {
        if (x[i] > most) most = x[i];
    }
    for (int i = 0; i < s->count; i++) {
        if (most - x[i] < s->distances) total += ((s->table[most - x[i]] >> 11) + 1) >> 1;
    }
    /* The sum has 12 integer bits; it is brought to [1, 2). */
    uint32_t shifted = (uint32_t)total;
    while (!(shifted & 0x80000000u)) {
        shifted <<= 1;
        unit++;
    }
    const int32_t scale = reciprocal((int32_t)(shifted & 0x7fffffffu));
    const int right = 12 - unit + 23;
    for (int i = 0; i < s->count; i++) {
        int32_t v = -128;
        if (most - x[i] < s->distances) {
            /* Near one there is no room to add a half before the shift. */
            const int32_t share = product(scale, s->table[most - x[i]]);
            v += (share >> right) + ((share >> (right - 1)) & 1);
        }
        y[i] = (element)(v > 127 ? 127 : v);
    }
}
