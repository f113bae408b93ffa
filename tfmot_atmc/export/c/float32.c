/* Floating point: activations and sums are float. */
typedef float element;
typedef float sum;

/* The range that an activation lets through. */
typedef struct {
    float lowest, highest;
} scaling;

#define CHANNEL(argument)
#define scale_of(q, channel) (q)

static inline element finish(sum v, const scaling q) {
    if (v < q.lowest) v = q.lowest;
    if (v > q.highest) v = q.highest;
    return v;
}
