/* SPDX-License-Identifier: Apache-2.0
   Text and exit through semihosting, and a counter of instructions: what QEMU offers. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stdint.h>

void print_text(const char *text);
void print_number(const char *label, int32_t value);
void exit_machine(void);

/* Ticks of the SysTick timer; with `-icount shift=0` one tick of the mps2 boards is 40 instructions. */
void start_ticks(void);
uint32_t ticks(void);
/* Fills the unused stack with a pattern, and tells how many bytes were used since. */
void paint_stack(void);
uint32_t used_stack(void);

#endif
