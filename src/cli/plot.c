/* plot.c - SVG diagrams. Units: 640 x 360 of the view box; the frame leaves room for numbers and names of the axes. */
#include "cli/plot.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 640, HEIGHT = 360, LEFT = 78, RIGHT = 18, TOP = 14, BOTTOM = 56, FEW = 5 /* a logarithmic axis has ticks of a linear one below */ };

void cl_html_text(FILE *f, const char *text)
{
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", f);
        else if (*text == '>')
            fputs("&gt;", f);
        else if (*text == '&')
            fputs("&amp;", f);
        else if (*text == '"')
            fputs("&quot;", f);
        else
            fputc((unsigned char)*text < 0x20 ? '?' : *text, f);
    }
}

static double place(double v, double a, double b, bool is_log)
{
    return is_log ? (log(v) - log(a)) / (log(b) - log(a)) : (v - a) / (b - a);
}

static double at_x(const cl_plot *p, double x)
{
    return LEFT + place(x, p->x0, p->x1, p->log_x) * (WIDTH - LEFT - RIGHT);
}

static double at_y(const cl_plot *p, double y)
{
    return HEIGHT - BOTTOM - place(y, p->y0, p->y1, p->log_y) * (HEIGHT - TOP - BOTTOM);
}

/* ---- axes ----------------------------------------------------------------------------------- */

static void number(char text[32], double v, double step)
{
    const int digits = step > 0 && step < 1 ? (int)ceil(-log10(step) - 1e-9) : 0;
    if (v != 0 && (fabs(v) >= 1e6 || fabs(v) < 1e-4))
        snprintf(text, 32, "%.0e", v);
    else
        snprintf(text, 32, "%.*f", digits, v == 0 ? 0 : v); /* no -0 */
}

static void tick(const cl_plot *p, bool is_x, double v, const char *text)
{
    if (is_x)
        fprintf(p->f, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
                at_x(p, v), at_x(p, v), TOP, HEIGHT - BOTTOM, at_x(p, v), HEIGHT - BOTTOM + 17, text);
    else
        fprintf(p->f, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                LEFT, WIDTH - RIGHT, at_y(p, v), at_y(p, v), LEFT - 7, at_y(p, v) + 4, text);
}

/* Steps of 1, 2 or 5 times a power of ten, about five of them. */
static void linear_ticks(const cl_plot *p, bool is_x, double a, double b)
{
    const double rough = (b - a) / 5, power = pow(10, floor(log10(rough))), share = rough / power;
    const double step = (share < 1.5 ? 1 : share < 3.5 ? 2 : share < 7.5 ? 5 : 10) * power;
    for (double k = ceil(a / step - 1e-9); k * step <= b + 1e-9 * step; k++) {
        char text[32];
        number(text, k * step, step);
        tick(p, is_x, k * step, text);
    }
}

/* Powers of ten, with their doubles and fives where there are few. */
static void log_ticks(const cl_plot *p, bool is_x, double a, double b)
{
    static const double part[] = {1, 2, 5};
    const int parts = log10(b / a) > 3 ? 1 : 3;
    const int every = log10(b / a) > 8 ? 2 : 1;
    for (int e = (int)floor(log10(a)); e <= (int)ceil(log10(b)); e += every)
        for (int i = 0; i < parts; i++) {
            char text[32];
            const double v = part[i] * pow(10, (double)e);
            if (v < a * (1 - 1e-9) || v > b * (1 + 1e-9))
                continue;
            number(text, v, v);
            tick(p, is_x, v, text);
        }
}

static void axes(const cl_plot *p)
{
    if (p->tick)
        for (int i = 0; i < p->n_ticks; i++)
            tick(p, true, i, p->tick[i]);
    else if (p->log_x && p->x1 > FEW * p->x0)
        log_ticks(p, true, p->x0, p->x1);
    else
        linear_ticks(p, true, p->x0, p->x1);
    if (p->log_y && p->y1 > FEW * p->y0)
        log_ticks(p, false, p->y0, p->y1);
    else
        linear_ticks(p, false, p->y0, p->y1);
    fprintf(p->f, "<rect class=\"frame\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n", LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    fprintf(p->f, "<text class=\"name\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14);
    cl_html_text(p->f, p->x_name);
    fprintf(p->f, "</text>\n<text class=\"name\" transform=\"translate(15 %d) rotate(-90)\" text-anchor=\"middle\">", (TOP + HEIGHT - BOTTOM) / 2);
    cl_html_text(p->f, p->y_name);
    fputs("</text>\n", p->f);
}

static void widen(double *a, double *b, bool is_log)
{
    if (is_log) {
        *a = *a > 0 ? *a : 1e-9;
        *b = *b > *a * 1.01 ? *b : *a * 2;
        return;
    }
    if (!(*b > *a)) {
        *b = *a + (*a != 0 ? fabs(*a) : 1);
        *a -= *a != 0 ? 0.5 * fabs(*a) : 0;
    }
}

void cl_plot_begin(cl_plot *p, FILE *f, double x0, double x1, double y0, double y1)
{
    p->f = f;
    p->x0 = x0;
    p->x1 = x1;
    p->y0 = y0;
    p->y1 = y1;
    p->keys = p->boxes = 0;
    widen(&p->x0, &p->x1, p->log_x);
    widen(&p->y0, &p->y1, p->log_y);
    fputs("<figure><figcaption>", f);
    cl_html_text(f, p->title);
    fprintf(f, "</figcaption>\n<svg viewBox=\"0 0 %d %d\" role=\"img\">\n", WIDTH, HEIGHT);
    axes(p);
}

/* ---- series --------------------------------------------------------------------------------- */

static void add_key(cl_plot *p, const char *name, int series, int kind, int mark)
{
    if (!name || p->keys == CL_PLOT_KEYS)
        return;
    if (mark >= 0)
        snprintf(p->key[p->keys].text, sizeof p->key->text, "%d %s", mark, name);
    else
        snprintf(p->key[p->keys].text, sizeof p->key->text, "%s", name);
    p->key[p->keys].series = series % CL_SERIES;
    p->key[p->keys++].kind = kind;
}

static bool inside(const cl_plot *p, double x, double y)
{
    return isfinite(x) && isfinite(y) && (!p->log_x || x > 0) && (!p->log_y || y > 0);
}

static double within(double v, double a, double b)
{
    return v < a ? a : v > b ? b : v;
}

void cl_plot_line(cl_plot *p, const double *x, const double *y, int64_t n, int series, const char *name)
{
    bool open = false;
    for (int64_t i = 0; i < n; i++) {
        const bool here = inside(p, x[i], y[i]);
        if (here && !open)
            fprintf(p->f, "<polyline class=\"line s%d\" points=\"", series % CL_SERIES);
        if (here)
            fprintf(p->f, "%.1f,%.1f ", at_x(p, within(x[i], p->x0, p->x1)), at_y(p, within(y[i], p->y0, p->y1)));
        else if (open)
            fputs("\"/>\n", p->f);
        open = here;
    }
    if (open)
        fputs("\"/>\n", p->f);
    add_key(p, name, series, 0, -1);
}

void cl_plot_bars(cl_plot *p, const double *x, const double *y, int64_t n, double width, int series, const char *name)
{
    for (int64_t i = 0; i < n; i++) {
        if (!inside(p, x[i], y[i]) || y[i] < p->y0)
            continue;
        const double from = at_x(p, within(x[i] - width / 2, p->x0, p->x1)), to = at_x(p, within(x[i] + width / 2, p->x0, p->x1));
        const double top = at_y(p, within(y[i], p->y0, p->y1));
        fprintf(p->f, "<rect class=\"bar s%d\" x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\"/>\n", series % CL_SERIES, from, top, to - from,
                HEIGHT - BOTTOM - top);
    }
    add_key(p, name, series, 0, -1);
}

void cl_plot_vertical(cl_plot *p, double x, int series, const char *name)
{
    if (inside(p, x, p->y1) && x >= p->x0 && x <= p->x1)
        fprintf(p->f, "<line class=\"cut s%d\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", series % CL_SERIES, at_x(p, x), at_x(p, x), TOP, HEIGHT - BOTTOM);
    add_key(p, name, series, 1, -1);
}

/* ---- marks and their numbers ---------------------------------------------------------------- */

enum { NUMBER_HEIGHT = 12, BESIDE = 20 /* from a dot to its number in a column */, TOGETHER = 14 };

typedef struct {
    const cl_mark *mark;
    double x, y, half, tx, ty; /* of the dot; half the number's width; of the number */
} dot;

static int from_left(const void *a, const void *b)
{
    const dot *p = a, *q = b;
    return p->x < q->x ? -1 : p->x > q->x;
}

static int from_top(const void *a, const void *b)
{
    const dot *p = a, *q = b;
    return p->y != q->y ? (p->y < q->y ? -1 : 1) : p->mark->number - q->mark->number;
}

/* A place for a number beside its dot that is free: nearer ones first. */
static void free_place(const cl_plot *p, dot *d)
{
    static const double angle[] = {-0.25, 0.25, -0.75, 0.75, 0, 1, -0.5, 0.5, -0.125, 0.125, -0.875, 0.875};
    for (int ring = 0; ring < 8; ring++)
        for (size_t a = 0; a < sizeof angle / sizeof *angle; a++) {
            const double r = 13 + 11 * ring, tx = d->x + r * cos(angle[a] * 3.14159265), ty = d->y + r * sin(angle[a] * 3.14159265);
            bool is_free = tx - d->half > LEFT && tx + d->half < WIDTH - RIGHT && ty - 7 > TOP && ty + 7 < HEIGHT - BOTTOM;
            for (int k = 0; k < p->boxes && is_free; k++)
                is_free = fabs(tx - p->box[k].x) > d->half + p->box[k].half || fabs(ty - p->box[k].y) > NUMBER_HEIGHT;
            if (!is_free)
                continue;
            d->tx = tx;
            d->ty = ty;
            return;
        }
}

static void occupy(cl_plot *p, double x, double y, double half)
{
    if (p->boxes == 2 * CL_PLOT_MARKS)
        return;
    p->box[p->boxes].x = x;
    p->box[p->boxes].y = y;
    p->box[p->boxes++].half = half;
}

/* Numbers of n dots (d[0], d[each], .. from top to bottom) in a column: as near to their dots' heights, in squares, as the room that each takes
 * lets them be (pools of those that touch, each at its mean). */
static void in_column(dot *d, int n, int each, double tx)
{
    double sum[CL_PLOT_MARKS];
    int count[CL_PLOT_MARKS], pools = 0;
    for (int i = 0; i < n; i++) {
        sum[pools] = d[i * each].y - NUMBER_HEIGHT * i;
        count[pools++] = 1;
        for (; pools > 1 && sum[pools - 2] * count[pools - 1] > sum[pools - 1] * count[pools - 2]; pools--) {
            sum[pools - 2] += sum[pools - 1];
            count[pools - 2] += count[pools - 1];
        }
    }
    for (int k = 0, i = 0; k < pools; k++)
        for (int e = 0; e < count[k]; e++, i++) {
            const double low = TOP + 8 + NUMBER_HEIGHT * i, high = HEIGHT - BOTTOM - 8 - NUMBER_HEIGHT * (n - 1 - i);
            d[i * each].tx = tx;
            d[i * each].ty = fmin(fmax(sum[k] / count[k] + NUMBER_HEIGHT * i, low), high);
        }
}

/* Whether a number `side` (1: right, -1: left) of dots a .. b - 1 would meet the frame or another column. */
static bool is_taken(const dot *d, int n, int a, int b, double side)
{
    const double x = d[a].x, far = x + side * (BESIDE + 9);
    bool taken = far < LEFT || far > WIDTH - RIGHT;
    for (int i = 0; i < n && !taken; i++)
        taken = (i < a || i >= b) && (d[i].x - x) * side > 0 && (d[i].x - far) * side < 5;
    return taken;
}

/* Dots one above the other: numbers right and left of them in turn, in their order, so that no line crosses another; on one side where the other is taken. */
static void both_sides(dot *d, int n, bool right, bool left)
{
    const double x = d[0].x;
    if (right == left) {
        in_column(d, (n + 1) / 2, 2, x + BESIDE);
        in_column(d + 1, n / 2, 2, x - BESIDE);
    } else
        in_column(d, n, 1, x + (right ? BESIDE : -BESIDE));
}

/* Dots that stand in columns are placed together, then the others where there is room. */
static void place_numbers(cl_plot *p, dot *d, int n)
{
    qsort(d, (size_t)n, sizeof *d, from_left);
    for (int a = 0, b; a < n; a = b) {
        for (b = a; b < n && d[b].x - d[a].x < TOGETHER; b++)
            continue;
        const bool right = !is_taken(d, n, a, b, 1), left = !is_taken(d, n, a, b, -1);
        qsort(d + a, (size_t)(b - a), sizeof *d, from_top);
        if (b - a > 1)
            both_sides(d + a, b - a, right, left);
    }
    for (int i = 0; i < n; i++) {
        occupy(p, d[i].x, d[i].y, 5); /* no number on a dot */
        if (d[i].tx != 0)
            occupy(p, d[i].tx, d[i].ty, d[i].half);
    }
    for (int i = 0; i < n; i++)
        if (d[i].tx == 0) {
            free_place(p, &d[i]);
            occupy(p, d[i].tx, d[i].ty, d[i].half);
        }
}

void cl_plot_marks(cl_plot *p, const cl_mark *mark, int n)
{
    dot d[CL_PLOT_MARKS];
    int dots = 0;
    for (int i = 0; i < n && dots < CL_PLOT_MARKS; i++) {
        if (!inside(p, mark[i].x, mark[i].y))
            continue;
        d[dots++] = (dot){.mark = &mark[i], .x = at_x(p, within(mark[i].x, p->x0, p->x1)), .y = at_y(p, within(mark[i].y, p->y0, p->y1)),
                          .half = mark[i].number > 9 ? 9 : 6};
        add_key(p, mark[i].name, mark[i].series, 2, mark[i].number);
    }
    place_numbers(p, d, dots);
    for (int i = 0; i < dots; i++)
        if (fabs(d[i].ty - d[i].y) > 5 && hypot(d[i].tx - d[i].x, d[i].ty - d[i].y) > 16)
            fprintf(p->f, "<line class=\"lead\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", d[i].x, d[i].y, d[i].tx, d[i].ty);
    for (int i = 0; i < dots; i++)
        fprintf(p->f, "<circle class=\"dot s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\"/>", d[i].mark->series % CL_SERIES, d[i].x, d[i].y);
    for (int i = 0; i < dots; i++)
        fprintf(p->f, "<text class=\"mark\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%d</text>\n", d[i].tx, d[i].ty + 4, d[i].mark->number);
}

void cl_plot_end(cl_plot *p)
{
    static const char *const kind[] = {"solid", "dash", "dot"};
    fputs("</svg>\n", p->f);
    if (p->keys)
        fputs("<div class=\"key\">", p->f);
    for (int i = 0; i < p->keys; i++) {
        fprintf(p->f, "<span><i class=\"%s s%d\"></i>", kind[p->key[i].kind], p->key[i].series);
        cl_html_text(p->f, p->key[i].text);
        fputs("</span> ", p->f);
    }
    if (p->keys)
        fputs("</div>\n", p->f);
    if (p->note) {
        fputs("<p class=\"note\">", p->f);
        cl_html_text(p->f, p->note);
        fputs("</p>\n", p->f);
    }
    fputs("</figure>\n", p->f);
}
