/* The border of a padded tensor means 0.0; `inner` of `outer` elements of a row are inside. */
static void fill(element *p, int count, element zero) {
    for (int i = 0; i < count; i++) p[i] = zero;
}

static void border(
    element *p, int first, int planes, int rows, int inner, int outer, int after, element zero) {
    fill(p, first, zero);
    p += first;
    for (int c = 0; c < planes; c++) {
        for (int row = 0; row < rows; row++, p += outer) fill(p + inner, outer - inner, zero);
        fill(p, after, zero);
        p += after;
    }
}
