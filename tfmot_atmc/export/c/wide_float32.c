/* Eight float outputs at once. */
#if defined(__AVX2__)
#include <immintrin.h>

typedef __m256 lanes;
typedef struct {
    int32_t first; /* offset of the input */
    float value;
} wide_tap;

/* Returns the end of what is written. */
static inline wide_tap *widen_taps(const tap *t, const tap *end, wide_tap *w) {
    int32_t at = 0;
    for (; t != end; t++, w++) {
        at += t->step;
        w->first = at;
        w->value = t->value;
    }
    return w;
}

static inline lanes wide_start(sum start) { return _mm256_set1_ps(start); }

static inline lanes wide_weight(const wide_tap *t) { return _mm256_set1_ps(t->value); }

static inline lanes wide_add(
    lanes a, const element *p, const wide_tap *t, lanes weight, const int stride) {
    lanes x = _mm256_loadu_ps(p += t->first);
    if (stride == 2) {
        const lanes y = _mm256_shuffle_ps(x, _mm256_loadu_ps(p + 7), 0xD8);
        x = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(y), 0xD8));
    }
    return _mm256_add_ps(a, _mm256_mul_ps(weight, x));
}

static inline lanes wide_load(const sum *p) { return _mm256_loadu_ps(p); }
static inline void wide_keep(sum *p, lanes a) { _mm256_storeu_ps(p, a); }
static inline lanes wide_most(lanes a, lanes b) { return _mm256_max_ps(a, b); }

/* The larger of each two neighbours of a and b. */
static inline lanes wide_halve(lanes a, lanes b) {
    const lanes most = _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xDD));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(most), 0xD8));
}

static inline lanes wide_finish(lanes a, const scaling q) {
    /* The second operand comes out where one is no number, as `finish` has it. */
    a = _mm256_max_ps(_mm256_set1_ps(q.lowest), a);
    return _mm256_min_ps(_mm256_set1_ps(q.highest), a);
}

static inline void wide_store(element *y, lanes a, int count) {
    if (count >= 8) {
        _mm256_storeu_ps(y, a);
        return;
    }
    __m128 rest = _mm256_castps256_ps128(a);
    if (count >= 4) {
        _mm_storeu_ps(y, rest);
        rest = _mm256_extractf128_ps(a, 1);
        y += 4, count -= 4;
    }
    for (; count > 0; count--) {
        *y++ = _mm_cvtss_f32(rest);
        rest = _mm_permute_ps(rest, 0x39);
    }
}

#if HAS_FUSED_ADD
static inline lanes wide_elements(const element *p, int count) {
    if (count >= 8) return _mm256_loadu_ps(p);
    element own[8] = {0};
    for (int i = 0; i < count; i++) own[i] = p[i];
    return _mm256_loadu_ps(own);
}

static inline lanes wide_total(const addition *s, lanes own, lanes other) {
    return wide_finish(_mm256_add_ps(own, other), s->scale);
}
#endif
#endif
