/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "esp_timer.h"
#include "model.h"

static model_input image[MODEL_INPUT_SIZE]; /* fill it from a sensor */
static model_output output[MODEL_OUTPUT_SIZE];

void app_main(void) {
    const int64_t before = esp_timer_get_time();
    model_invoke(image, output);
    const int64_t taken = esp_timer_get_time() - before;
    int best = 0;
    for (int k = 1; k < MODEL_OUTPUT_SIZE; k++) {
        if (output[k] > output[best]) best = k;
    }
    printf("label %d in %lld us\n", best, (long long)taken);
}
