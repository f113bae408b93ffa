static inline int32_t rescale(sum a, const scaling q) {
#if HAS_WIDE_SUMS
    const int32_t h = product(a * (1 << LEFT(q)), q.multiplier);
#else
    const int32_t h = high_half(a * (2 << LEFT(q)), q.multiplier);
#endif
    /* Halves are rounded away from zero. */
    return (h + ((1 << q.right) >> 1) + ROUNDING(h, q)) >> q.right;
}

static inline element finish(sum a, const scaling q) {
    int32_t v = rescale(a, q) + q.zero;
#if defined(__ARM_FEATURE_SAT) && defined(__GNUC__) && ALL_CODES
    __asm__("ssat %0, #8, %1" : "=r"(v) : "r"(v));
#else
    if (v < LOWEST(q)) v = LOWEST(q);
    if (v > HIGHEST(q)) v = HIGHEST(q);
#endif
    return (element)v;
}
