static void pool_average(const pooling *s, const element *x, element *y) {
    for (int c = 0; c < s->channels; c++) {
        for (int row = 0; row < s->rows; row++) {
            const int top = from_inside(row * s->stride_rows - s->top);
            const int bottom =
                to_inside(row * s->stride_rows - s->top + s->window_rows, s->x_rows);
            for (int pixel = 0; pixel < s->pixels; pixel++) {
                const int start = pixel * s->stride_pixels - s->left;
                const int left = from_inside(start);
                const int right = to_inside(start + s->window_pixels, s->x_pixels);
                sum total = 0;
                for (int i = top; i < bottom; i++) {
                    const element *p = x + c * s->x_plane + i * s->x_row;
                    for (int k = left; k < right; k++) total += p[k];
                }
                sum v = average(total, (bottom - top) * (right - left));
                if (v < s->lowest) v = s->lowest;
                if (v > s->highest) v = s->highest;
                y[c * s->y_plane + row * s->y_row + pixel] = (element)v;
            }
        }
    }
}
