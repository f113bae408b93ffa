/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

extern uint32_t bss_end, stack_top;
static const uint32_t pattern = 0xA5A5A5A5u;
static uint32_t *stack_from;

static int call_host(int operation, const void *argument) {
    register int r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void print_text(const char *text) { call_host(4, text); }

void print_number(const char *label, int32_t value) {
    char digits[12];
    char *p = digits + 11;
    uint32_t rest = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    *p = 0;
    do {
        uint32_t tenth = 0;
        while (rest >= 1000000) rest -= 1000000, tenth += 100000;
        while (rest >= 10) rest -= 10, tenth++;
        *--p = (char)('0' + rest);
        rest = tenth;
    } while (rest);
    if (value < 0) *--p = '-';
    print_text(label);
    print_text(p);
    print_text("\n");
}

void exit_machine(void) { call_host(0x18, (const void *)0x20026); }

#define SYSTICK ((volatile uint32_t *)0xE000E010)

void start_ticks(void) {
    SYSTICK[0] = 0;
    SYSTICK[1] = 0xFFFFFF;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5;
}

uint32_t ticks(void) { return 0xFFFFFF - SYSTICK[2]; }

void paint_stack(void) {
    __asm volatile("mov %0, sp" : "=r"(stack_from));
    for (volatile uint32_t *p = &bss_end; p < stack_from - 8; p++) *p = pattern;
}

uint32_t used_stack(void) {
    const uint32_t *p = &bss_end;
    while (p < stack_from && *p == pattern) p++;
    return (uint32_t)((const char *)stack_from - (const char *)p);
}
