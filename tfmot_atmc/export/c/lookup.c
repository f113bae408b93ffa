/* Any function of one code: a table of its values for -128 to 127. */
typedef struct {
    const int8_t *table;
    extent channels, rows, pixels, x_row, x_plane, y_row, y_plane;
} lookup;

static void look_up(const lookup *s, const element *x, element *y) {
    for (int c = 0; c < s->channels; c++) {
        for (int row = 0; row < s->rows; row++) {
            const element *p = x + c * s->x_plane + row * s->x_row;
            element *q = y + c * s->y_plane + row * s->y_row;
            for (int i = 0; i < s->pixels; i++) q[i] = s->table[p[i] + 128];
        }
    }
}
