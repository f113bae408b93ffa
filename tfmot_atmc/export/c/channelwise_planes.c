static void combine(const channelwise *layer, const element *x, element *y) {
    const channelwise s = *layer;
    for (int c = 0; c < s.channels; c++) {
        for (int row = 0; row < s.rows; row++) {
            const element *from = x + c * s.x_plane + row * s.x_row;
            element *to = y + c * s.y_plane + row * s.y_row;
            for (int i = 0; i < s.pixels; i++) {
                to[i] = finish(with_constant(s, from[i], s.constants[c]), s.scale);
            }
        }
    }
}
