/* SPDX-License-Identifier: Apache-2.0
   Classifies the images of images.h and says what it took. */
#include "images.h"
#include "machine.h"
#include "model.h"

static model_output output[MODEL_OUTPUT_SIZE];

int main(void) {
    int right = 0;
    uint32_t most_stack = 0, most_ticks = 0;
    start_ticks();
    for (int i = 0; i < IMAGES; i++) {
        paint_stack();
        const uint32_t before = ticks();
        model_invoke(images[i], output);
        const uint32_t taken = (ticks() - before) & 0xFFFFFF, stack = used_stack();
        if (taken > most_ticks) most_ticks = taken;
        if (stack > most_stack) most_stack = stack;
        int best = 0;
        for (int k = 1; k < MODEL_OUTPUT_SIZE; k++) {
            if (output[k] > output[best]) best = k;
        }
        print_number("label ", best);
        right += best == labels[i];
#ifdef PRINT_OUTPUTS
        for (int k = 0; k < MODEL_OUTPUT_SIZE; k++) print_number("output ", (int32_t)output[k]);
#endif
    }
    print_number("right ", right);
    print_number("of ", IMAGES);
    print_number("ticks of 40 instructions ", (int32_t)most_ticks);
    print_number("bytes of stack ", (int32_t)most_stack);
    return 0;
}
