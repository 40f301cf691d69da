/* picture.h - what training and evaluation of networks for pictures share (private to distill/). */
#ifndef NIBBLE_DISTILL_PICTURE_H
#define NIBBLE_DISTILL_PICTURE_H
#include "distill/distill.h"

status kd_picture_fits(const md_picture_net *m, const fm_pictures *data); /* NB_USAGE: other sizes or classes */
void kd_picture_values(real *x, const uint8_t *pixel, int64_t n);         /* x = pixel / 255 */
#endif
