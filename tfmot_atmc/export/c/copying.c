/* Copies from one order to another: a step for each channel, row and pixel on either side. */
typedef struct {
    extent channels, rows, pixels;
    extent x_plane, x_row, x_pixel, y_plane, y_row, y_pixel;
} copying;
