/* SPDX-License-Identifier: Apache-2.0 */
#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

#include "model.h"

static model_input image[MODEL_INPUT_SIZE]; /* fill it from a sensor */
static model_output output[MODEL_OUTPUT_SIZE];

int main(void) {
    const uint32_t before = k_cycle_get_32();
    model_invoke(image, output);
    const uint32_t cycles = k_cycle_get_32() - before;
    int best = 0;
    for (int k = 1; k < MODEL_OUTPUT_SIZE; k++) {
        if (output[k] > output[best]) best = k;
    }
    printk("label %d in %u cycles\n", best, cycles);
    return 0;
}
