/* (a * m + 2^31) / 2^32, rounded down, for m >= 0. */
static inline int32_t high_half(int32_t a, int32_t m) {
#if defined(__ARM_ARCH_6M__)
    /* No 64-bit products here: the same from products of 16 bits. */
    const uint32_t a_low = (uint16_t)a, m_low = (uint16_t)m;
    const int32_t a_high = a >> 16, m_high = m >> 16;
    const int32_t first = a_high * (int32_t)m_low, second = (int32_t)a_low * m_high;
    const uint32_t middle =
        ((a_low * m_low) >> 16) + (uint16_t)first + (uint16_t)second + 0x8000u;
    return a_high * m_high + (first >> 16) + (second >> 16) + (int32_t)(middle >> 16);
#elif defined(__ARM_FEATURE_DSP) && defined(__GNUC__)
    int32_t high;
    __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"(a), "r"(m));
    return high;
#else
    return (int32_t)(((int64_t)a * m + 0x80000000LL) >> 32);
#endif
}
