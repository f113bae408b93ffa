/* Pools: only the part of a window that lies inside counts. */
typedef struct {
    extent channels, rows, pixels; /* of the output */
    extent x_rows, x_pixels;       /* of the input */
    extent x_row, x_plane, y_row, y_plane;
    extent window_rows, window_pixels, stride_rows, stride_pixels;
    extent top, left; /* padding */
    element lowest, highest;
} pooling;

static inline int from_inside(int start) { return start < 0 ? 0 : start; }
static inline int to_inside(int end, int size) { return end > size ? size : end; }
