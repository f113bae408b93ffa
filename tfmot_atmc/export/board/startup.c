/* SPDX-License-Identifier: Apache-2.0
   What a bare Cortex-M needs before main: a vector table, and initialised memory. */
#include <stdint.h>

extern uint32_t data_from, data_start, data_end, bss_start, bss_end, stack_top;
int main(void);
void exit_machine(void);

void reset(void) {
    const uint32_t *from = &data_from;
    for (uint32_t *to = &data_start; to < &data_end;) *to++ = *from++;
    for (uint32_t *to = &bss_start; to < &bss_end;) *to++ = 0;
#if defined(__ARM_FP)
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* lets the core use its floating-point unit */
    __asm volatile("dsb\n isb");
#endif
    main();
    exit_machine();
    for (;;) {
    }
}

static void fault(void) {
    exit_machine();
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) const void *const vectors[16] = {
    &stack_top, (void *)reset, (void *)fault, (void *)fault,
};

/* Compilers may call these two by themselves. */
__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memset(
    void *to, int value, __SIZE_TYPE__ count) {
    for (char *p = to; count--;) *p++ = (char)value;
    return to;
}

__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memcpy(
    void *to, const void *from, __SIZE_TYPE__ count) {
    const char *q = from;
    for (char *p = to; count--;) *p++ = *q++;
    return to;
}
