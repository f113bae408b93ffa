/* Integers: activations are int8, sums int32. */
typedef int8_t element;
typedef int32_t sum;

/* A sum becomes an element: shifted left, times multiplier / 2^31, shifted right, moved, clamped. */
typedef struct {
    int32_t multiplier;
    uint8_t left, right;
    int8_t zero, lowest, highest;
#if HAS_CHANNEL_SCALES
    const int32_t *multipliers; /* of each channel; or null */
    const int8_t *shifts;       /* to the left; negative ones to the right */
#endif
} scaling;

#if HAS_CHANNEL_SCALES
#define CHANNEL(argument) , argument
static inline scaling scale_of(scaling q, int channel) {
    if (q.multipliers) {
        const int shift = q.shifts[channel];
        q.multiplier = q.multipliers[channel];
        q.left = (uint8_t)(shift > 0 ? shift : 0);
        q.right = (uint8_t)(shift < 0 ? -shift : 0);
    }
    return q;
}
#else
#define CHANNEL(argument)
#define scale_of(q, channel) (q)
#endif

/* Shifts of negative numbers must keep the sign, as they do in all compilers that matter. */
typedef char shifts_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];
