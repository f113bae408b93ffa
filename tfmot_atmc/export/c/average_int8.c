/* total / count; halves go away from zero. A mean of int8 has 8 bits, and a Cortex-M0 no division. */
static sum average(sum total, sum count) {
    uint32_t rest = (uint32_t)((total < 0 ? -total : total) + count / 2), q = 0;
    for (int bit = 8; bit >= 0; bit--) {
        if (rest >= (uint32_t)count << bit) {
            rest -= (uint32_t)count << bit;
            q |= 1u << bit;
        }
    }
    return total < 0 ? -(sum)q : (sum)q;
}
