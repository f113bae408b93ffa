/* One row of one filter's outputs, pixels STRIDE apart; several of them at once in registers. */
#define ROW_NAME_(name, stride) name##_##stride
#define ROW_NAME(name, stride) ROW_NAME_(name, stride)

static inline void ROW_NAME(pixel, STRIDE)(
    const element *x, const tap *t, const tap *end, sum a, sum *out) {
    for (; t != end; t++) {
        x += t->step;
        a += t->value * (sum)*x;
    }
    *out = a;
}

#if BLOCK >= 4
static inline void ROW_NAME(block, STRIDE)(
    const element *p, const tap *t, const tap *end, sum start, sum *out) {
    sum a0 = start, a1 = start, a2 = start, a3 = start;
#if BLOCK == 8
    sum a4 = start, a5 = start, a6 = start, a7 = start;
#endif
    for (; t != end; t++) {
        p += t->step;
        const sum v = t->value;
        a0 += v * p[0];
        a1 += v * p[STRIDE];
        a2 += v * p[2 * STRIDE];
        a3 += v * p[3 * STRIDE];
#if BLOCK == 8
        a4 += v * p[4 * STRIDE];
        a5 += v * p[5 * STRIDE];
        a6 += v * p[6 * STRIDE];
        a7 += v * p[7 * STRIDE];
#endif
    }
    out[0] = a0;
    out[1] = a1;
    out[2] = a2;
    out[3] = a3;
#if BLOCK == 8
    out[4] = a4;
    out[5] = a5;
    out[6] = a6;
    out[7] = a7;
#endif
}
#endif

static void ROW_NAME(row, STRIDE)(
    const element *x, const tap *t, const tap *end, sum start, sum *out, int width) {
    int i = 0;
#if BLOCK >= 4
    for (; i + BLOCK <= width; i += BLOCK) {
        ROW_NAME(block, STRIDE)(x + i * STRIDE, t, end, start, out + i);
    }
    if (i < width && width >= BLOCK) {
        /* The last block overlaps the one before it. */
        i = width - BLOCK;
        ROW_NAME(block, STRIDE)(x + i * STRIDE, t, end, start, out + i);
        return;
    }
#endif
    for (; i < width; i++) ROW_NAME(pixel, STRIDE)(x + i * STRIDE, t, end, start, out + i);
}
