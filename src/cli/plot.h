/* plot.h - one diagram as inline SVG: axes with ticks, lines, bars, marks with numbers that keep clear of each other. Colours are the page's CSS variables
 * --c0 .. --c7, so that a theme decides, the last one grey; names of series stand in a key below, so that nothing overlaps.
 */
#ifndef NIBBLE_CLI_PLOT_H
#define NIBBLE_CLI_PLOT_H
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { CL_PLOT_KEYS = 48, CL_PLOT_MARKS = 128, CL_SERIES = 8, CL_GREY = CL_SERIES - 1 /* for what others are seen beside */ };
typedef struct {
    const char *title, *note, *x_name, *y_name;
    bool log_x, log_y;
    const char *const *tick; /* names of x = 0, 1, .., n_ticks - 1; NULL: numbers */
    int n_ticks;
    /* private */
    FILE *f;
    double x0, x1, y0, y1;
    struct {
        char text[160];
        int series, kind; /* 0 line, 1 dashed, 2 mark */
    } key[CL_PLOT_KEYS];
    int keys;
    struct {
        double x, y, half;
    } box[2 * CL_PLOT_MARKS]; /* dots and numbers */
    int boxes;
} cl_plot;

/* Text as HTML. */
void cl_html_text(FILE *f, const char *text);
/* The frame of values x0..x1, y0..y1 (made wider where they are equal; logarithmic axes need positive ones). */
void cl_plot_begin(cl_plot *p, FILE *f, double x0, double x1, double y0, double y1);
void cl_plot_line(cl_plot *p, const double *x, const double *y, int64_t n, int series, const char *name); /* NAN breaks the line */
/* Bars from the lower edge, each half a step wide; y [n] at x [n]. */
void cl_plot_bars(cl_plot *p, const double *x, const double *y, int64_t n, double width, int series, const char *name);
void cl_plot_vertical(cl_plot *p, double x, int series, const char *name); /* dashed, over the whole height */
typedef struct {
    double x, y;
    int series, number;
    const char *name;
} cl_mark;
void cl_plot_marks(cl_plot *p, const cl_mark *mark, int n); /* dots, their numbers beside them; once in a diagram. What
                                                               lies outside of the axes' kind or behind CL_PLOT_MARKS is left out */
void cl_plot_end(cl_plot *p);

#endif
