// SPDX-License-Identifier: Apache-2.0
// Needs model.c and model.h of `atmc export --format=c` in this folder. Not compiled here.
#include "model.h"

static model_input image[MODEL_INPUT_SIZE];  // fill it from a sensor
static model_output output[MODEL_OUTPUT_SIZE];

void setup() { Serial.begin(115200); }

void loop() {
  const unsigned long before = micros();
  model_invoke(image, output);
  const unsigned long taken = micros() - before;
  int best = 0;
  for (int k = 1; k < MODEL_OUTPUT_SIZE; k++) {
    if (output[k] > output[best]) best = k;
  }
  Serial.print(best);
  Serial.print(" in microseconds ");
  Serial.println(taken);
  delay(1000);
}
