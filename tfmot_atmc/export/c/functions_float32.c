/* Functions of one value. */
typedef struct {
    scaling scale;
    uint8_t sigmoid;
    extent channels, rows, pixels, x_row, x_plane, y_row, y_plane;
} applying;

static void apply(const applying *s, const element *x, element *y) {
    const scaling q = s->scale;
    for (int c = 0; c < s->channels; c++) {
        for (int row = 0; row < s->rows; row++) {
            const element *p = x + c * s->x_plane + row * s->x_row;
            element *to = y + c * s->y_plane + row * s->y_row;
            for (int i = 0; i < s->pixels; i++) to[i] = APPLIED(s, p[i], q);
        }
    }
}
