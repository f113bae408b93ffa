static float sigmoid(float v) {
    const float e = exponential(v < 0.0f ? v : -v);
    return (v < 0.0f ? e : 1.0f) / (1.0f + e);
}
