static void add_planes(const addition *s, const element *a, const element *b, element *y) {
    for (int c = 0; c < s->channels; c++) {
        for (int row = 0; row < s->rows; row++) {
            add_row(s, a + c * s->a_plane + row * s->a_row, b + c * s->b_plane + row * s->b_row,
                    y + c * s->y_plane + row * s->y_row, s->pixels);
        }
    }
}
