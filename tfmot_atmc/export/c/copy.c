static void copy(const copying *s, const element *x, element *y) {
    for (int row = 0; row < s->rows; row++) {
        for (int i = 0; i < s->pixels; i++) {
            const element *from = x + row * s->x_row + i * s->x_pixel;
            element *to = y + row * s->y_row + i * s->y_pixel;
            for (int c = 0; c < s->channels; c++) to[c * s->y_plane] = from[c * s->x_plane];
        }
    }
}
