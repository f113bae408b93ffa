static void pool_max(const pooling *s, const element *x, element *y) {
    for (int c = 0; c < s->channels; c++) {
        for (int row = 0; row < s->rows; row++) {
            const int top = row * s->stride_rows - s->top;
            const int bottom = to_inside(top + s->window_rows, s->x_rows);
            for (int pixel = 0; pixel < s->pixels; pixel++) {
                const int left = pixel * s->stride_pixels - s->left;
                const int right = to_inside(left + s->window_pixels, s->x_pixels);
                element most = s->lowest;
                for (int i = from_inside(top); i < bottom; i++) {
                    const element *p = x + c * s->x_plane + i * s->x_row;
                    for (int k = from_inside(left); k < right; k++) {
                        if (p[k] > most) most = p[k];
                    }
                }
                y[c * s->y_plane + row * s->y_row + pixel] = most > s->highest ? s->highest : most;
            }
        }
    }
}
