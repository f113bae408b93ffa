/* Integers: activations are int8, sums int32. */
typedef int8_t element;
typedef int32_t sum;

/* A sum becomes an element: shifted left, times multiplier / 2^31, shifted right, moved, clamped. */
typedef struct {
    int32_t multiplier;
    uint8_t left, right;
    int8_t zero, lowest, highest;
} scaling;

/* Shifts of negative numbers must keep the sign, as they do in all compilers that matter. */
typedef char shifts_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];
