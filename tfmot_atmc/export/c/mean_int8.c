/* The mean of each plane, on another scale. */
typedef struct {
    scaling scale;
    int32_t x_zero; /* of all values of a plane together */
    extent channels, rows, pixels, x_row, x_plane, y_plane;
} averaging;

static void mean(const averaging *s, const element *x, element *y) {
    for (int c = 0; c < s->channels; c++) {
        sum total = -s->x_zero;
        for (int row = 0; row < s->rows; row++) {
            const element *p = x + c * s->x_plane + row * s->x_row;
            for (int i = 0; i < s->pixels; i++) total += p[i];
        }
        y[c * s->y_plane] = finish(total, s->scale);
    }
}
