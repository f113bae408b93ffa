/* a * b / 2^31, rounded to the nearest, for all numbers but twice the lowest. */
static inline int32_t product(int32_t a, int32_t b) {
#if defined(__ARM_ARCH_6M__)
    const uint32_t a_low = (uint16_t)a, b_low = (uint16_t)b;
    const int32_t a_high = a >> 16, b_high = b >> 16;
    const int32_t first = a_high * (int32_t)b_low, second = (int32_t)a_low * b_high;
    const uint32_t middle = ((a_low * b_low) >> 16) + (uint16_t)first + (uint16_t)second;
    const uint32_t low = (middle << 16) | (uint16_t)(a_low * b_low), rounded = low + (1u << 30);
    const int32_t high =
        a_high * b_high + (first >> 16) + (second >> 16) + (int32_t)(middle >> 16);
    return (int32_t)((uint32_t)(high + (rounded < low)) << 1 | rounded >> 31);
#else
    return (int32_t)(((int64_t)a * b + (1 << 30)) >> 31);
#endif
}
