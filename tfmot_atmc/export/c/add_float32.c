/* Sums of two tensors. */
typedef struct {
    scaling scale;
    extent channels, rows, pixels, a_row, a_plane, b_row, b_plane, y_row, y_plane;
} addition;

static void add_row(
    const addition *add, const element *a, const element *b, element *y, int count) {
    const scaling q = add->scale;
    for (int i = 0; i < count; i++) y[i] = finish(a[i] + b[i], q);
}
