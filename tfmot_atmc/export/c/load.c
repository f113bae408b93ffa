/* Bytes of the caller, such as a camera's, become elements. */
static void load(const copying *s, const uint8_t *x, element *y) {
    for (int row = 0; row < s->rows; row++) {
        for (int i = 0; i < s->pixels; i++) {
            const uint8_t *from = x + row * s->x_row + i * s->x_pixel;
            element *to = y + row * s->y_row + i * s->y_pixel;
            for (int c = 0; c < s->channels; c++) {
                to[c * s->y_plane] = LOADED(from[c * s->x_plane], c);
            }
        }
    }
}
