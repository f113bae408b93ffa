/* Eight int8 outputs at once. Weights go in pairs, as the instruction that multiplies and adds
   takes them. */
#if defined(__AVX2__)
#include <immintrin.h>

typedef __m256i lanes;
typedef struct {
    int32_t first, second; /* offsets of two inputs */
    int32_t values;        /* their weights, 16 bits each */
} wide_tap;

/* Returns the end of what is written. */
static inline wide_tap *widen_taps(const tap *t, const tap *end, wide_tap *w) {
    int32_t at = 0;
    for (; t != end; w++) {
        at += t->step;
        w->first = w->second = at;
        uint32_t values = (uint16_t)t++->value;
        if (t != end) {
            at += t->step;
            w->second = at;
            values |= (uint32_t)(uint16_t)t++->value << 16;
        }
        w->values = (int32_t)values;
    }
    return w;
}

static inline lanes wide_start(sum start) { return _mm256_set1_epi32(start); }

static inline lanes wide_weight(const wide_tap *t) { return _mm256_set1_epi32(t->values); }

/* Bytes p[0], p[stride], ..., and none beyond the last one. */
static inline __m128i wide_pixels(const element *p, const int stride) {
    const __m128i first = _mm_loadl_epi64((const __m128i *)p);
    if (stride == 1) return first;
    const __m128i both = _mm_unpacklo_epi64(first, _mm_loadl_epi64((const __m128i *)(p + 7)));
    const __m128i places = _mm_setr_epi8(0, 2, 4, 6, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm_shuffle_epi8(both, places);
}

static inline lanes wide_add(
    lanes a, const element *p, const wide_tap *t, lanes weight, const int stride) {
    const __m128i first = wide_pixels(p + t->first, stride);
    const __m128i second = wide_pixels(p + t->second, stride);
    const lanes x = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first, second));
    return _mm256_add_epi32(a, _mm256_madd_epi16(x, weight));
}

static inline lanes wide_load(const sum *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void wide_keep(sum *p, lanes a) { _mm256_storeu_si256((__m256i *)p, a); }
static inline lanes wide_most(lanes a, lanes b) { return _mm256_max_epi32(a, b); }

/* The larger of each two neighbours of a and b. */
static inline lanes wide_halve(lanes a, lanes b) {
    const __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    const lanes even = _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88));
    const lanes odd = _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xDD));
    return _mm256_permute4x64_epi64(_mm256_max_epi32(even, odd), 0xD8);
}

/* As `rescale` does. */
static inline lanes wide_rescale(lanes a, const scaling q) {
    const lanes m = _mm256_set1_epi32(q.multiplier);
#if HAS_WIDE_SUMS
    const lanes half = _mm256_set1_epi64x(1 << 30);
    const int left = LEFT(q);
#else
    const lanes half = _mm256_set1_epi64x(0x80000000LL);
    const int left = LEFT(q) + 1;
#endif
    a = _mm256_sll_epi32(a, _mm_cvtsi32_si128(left));
    lanes even = _mm256_add_epi64(_mm256_mul_epi32(a, m), half);
    lanes odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(a, 32), m), half);
#if HAS_WIDE_SUMS
    even = _mm256_slli_epi64(even, 1);
    odd = _mm256_slli_epi64(odd, 1);
#endif
    const lanes h = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    const lanes rounding = _mm256_set1_epi32((1 << q.right) >> 1);
    const lanes sign = q.right ? _mm256_srai_epi32(h, 31) : _mm256_setzero_si256();
    a = _mm256_add_epi32(_mm256_add_epi32(h, rounding), sign);
    return _mm256_sra_epi32(a, _mm_cvtsi32_si128(q.right));
}

static inline lanes wide_finish(lanes a, const scaling q) {
    a = _mm256_add_epi32(wide_rescale(a, q), _mm256_set1_epi32(q.zero));
    a = _mm256_max_epi32(a, _mm256_set1_epi32(LOWEST(q)));
    return _mm256_min_epi32(a, _mm256_set1_epi32(HIGHEST(q)));
}

static inline void wide_store(element *y, lanes a, int count) {
    const __m128i low = _mm256_castsi256_si128(a), high = _mm256_extracti128_si256(a, 1);
    const __m128i short_ = _mm_packs_epi32(low, high), codes = _mm_packs_epi16(short_, short_);
    if (count >= 8) {
        _mm_storel_epi64((__m128i *)y, codes);
        return;
    }
    int64_t rest = _mm_cvtsi128_si64(codes);
    if (count >= 4) {
        _mm_storeu_si32(y, codes);
        y += 4, count -= 4, rest >>= 32;
    }
    for (; count > 0; count--, rest >>= 8) *y++ = (element)rest;
}

#if HAS_FUSED_ADD
static inline lanes wide_elements(const element *p, int count) {
    if (count >= 8) return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    element own[8] = {0};
    for (int i = 0; i < count; i++) own[i] = p[i];
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)own));
}

/* As `add_row` does. */
static inline lanes wide_total(const addition *s, lanes own, lanes other) {
    const lanes a = SWAPPED(s) ? other : own, b = SWAPPED(s) ? own : other;
    const lanes high = _mm256_mullo_epi32(a, _mm256_set1_epi32(s->high));
    const lanes low = _mm256_mullo_epi32(a, _mm256_set1_epi32(s->low));
    lanes h = _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_set1_epi32(s->rounded)), 11);
    h = _mm256_add_epi32(_mm256_add_epi32(high, _mm256_set1_epi32(s->from_zero)), h);
    const lanes half = _mm256_set1_epi32((1 << s->right) >> 1);
    const lanes rounded = _mm256_add_epi32(_mm256_add_epi32(h, half), _mm256_srai_epi32(h, 31));
    const lanes first = _mm256_sra_epi32(rounded, _mm_cvtsi32_si128(s->right));
    const lanes second =
        _mm256_add_epi32(_mm256_slli_epi32(b, 19), _mm256_set1_epi32(s->second_zero));
    return wide_finish(_mm256_add_epi32(first, second), s->scale);
}
#endif
#endif
