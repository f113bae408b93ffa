/* exp(v) in float32 for v <= 0; no mathematics library is needed. */
static float exponential(float v) {
    if (!(v > -87.0f)) return 0.0f;
    const int power = (int)(v * 1.44269504f - 0.5f);
    /* v - power * log(2), the logarithm in two parts. */
    const float r = (v - (float)power * 0.693145752f) - (float)power * 1.42860677e-6f;
    float e = 1.0f / 5040.0f;
    e = e * r + 1.0f / 720.0f;
    e = e * r + 1.0f / 120.0f;
    e = e * r + 1.0f / 24.0f;
    e = e * r + 1.0f / 6.0f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    union {
        uint32_t bits;
        float value;
    } scale;
    scale.bits = (uint32_t)(127 + power) << 23;
    return e * scale.value;
}
