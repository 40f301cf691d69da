/* picture_sheet.c - a sheet about a network for pictures and a quantized one, as SVG: filters of the first layer of both (white: the
 * largest of a filter, black: its opposite), the range of every result, test pictures that the quantized one takes for another class.
 * Light or dark as the reader's screen is.
 */
#include "cli/cli_picture.h"
#include "cli/plot.h"
#include <math.h>
#include <stdlib.h>

enum { MOST = 16, ROOM = 70, LEFT = 20, WIDTH = LEFT + MOST * ROOM, LINE = 18 };
#define SEAM 0.4 /* squares overlap a little: no lines between them */

static double weight_at(const kn_codes *q, const ag_param *w, int64_t n, int64_t d)
{
    if (!q)
        return (double)w->x[n * w->dim[1] + d];
    const double scale = (double)q->scale[q->grid.grain == KN_TENSOR ? 0 : n];
    return scale * (kn_mul(&q->grid) * q->q[n * q->ld + d] + kn_add(&q->grid));
}

static void frame(FILE *f, double x, double y, double width, double height)
{
    fprintf(f, "<rect class='frame' x='%.2f' y='%.2f' width='%.2f' height='%.2f'/>\n", x, y, width, height);
}

/* The first channel of every filter: windows of a convolution, or whole pictures of a linear map. */
static status filters(FILE *f, md_picture_net *m, double top)
{
    const ly_conv *l = &m->layer[0];
    const kn_codes *q = l->w_site->spec.grid.bits ? fq_site_codes(l->w_site, &m->base.params) : NULL;
    const bool whole = l->c.H * l->c.W == 1;
    const int64_t channels = whole ? m->stages.channels : l->c.C / l->c.groups, width = whole ? m->stages.width : l->c.K,
                  points = (whole ? m->stages.height : l->c.K) * width;
    const double side = (ROOM - 6) / (double)(points / width > width ? points / width : width);
    if (!q && !l->w)
        return nb_fail(NB_USAGE, "%s: its first layer has neither codes nor floats", l->name);
    for (int64_t n = 0; n < l->c.N && n < MOST; n++) {
        double most = 0;
        for (int64_t k = 0; k < points; k++)
            most = fmax(most, fabs(weight_at(q, l->w, n, k * channels)));
        for (int64_t k = 0; k < points; k++) {
            const double v = most > 0 ? weight_at(q, l->w, n, k * channels) / most : 0;
            const int grey = (int)(127.5 + 127.5 * v);
            fprintf(f, "<rect x='%.2f' y='%.2f' width='%.2f' height='%.2f' fill='#%02x%02x%02x'/>\n", LEFT + (double)n * ROOM + (double)(k % width) * side,
                    top + (double)(k / width) * side, side + SEAM, side + SEAM, grey, grey, grey);
        }
        frame(f, LEFT + (double)n * ROOM, top, (double)width * side, (double)(points / width) * side);
    }
    return NB_OK;
}

/* Whether the site holds a range of results. */
static bool is_shown(const fq_site *s)
{
    return !s->is_weight && s->spec.grid.bits && s->started;
}

static int shown_ranges(const md_picture_net *m)
{
    int n = 0;
    for (int64_t i = 0; i < m->base.sites.n; i++)
        n += is_shown(m->base.sites.s[i]);
    return n;
}

static double ranges(FILE *f, const md_picture_net *m, double top)
{
    double largest = 1e-30;
    const double unit_width = (WIDTH - 340) / 2.0, middle = 320 + unit_width;
    if (shown_ranges(m))
        fprintf(f, "<line x1='%.1f' x2='%.1f' y1='%.0f' y2='%.0f'/>\n", middle, middle, top - 4, top + LINE * shown_ranges(m));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < m->base.sites.n; i++) {
            const fq_site *s = m->base.sites.s[i];
            const kn_grid *g = &s->spec.grid;
            real scale;
            int32_t zero = 0;
            if (!is_shown(s))
                continue;
            fq_site_ranges(s, &scale, g->has_zero ? &zero : NULL);
            const double low = (double)(g->lo - zero) * (double)scale, high = (double)(g->hi - zero) * (double)scale;
            largest = fmax(largest, fmax(fabs(low), fabs(high)));
            if (!pass)
                continue;
            const double unit = unit_width / largest;
            fprintf(f, "<text x='%d' y='%.0f'>%s</text><text x='%d' y='%.0f'>%.3g .. %.3g, %d codes</text>\n"
                       "<rect class='bar' x='%.1f' y='%.0f' width='%.1f' height='10'/>\n",
                    LEFT, top + 10, s->name, LEFT + 120, top + 10, low, high, g->hi - g->lo + 1, middle + low * unit, top, (high - low) * unit);
            top += LINE;
        }
    return top;
}

static void mistakes(FILE *f, const fm_pictures *p, const uint8_t *class, double top)
{
    const int64_t points = p->height * p->width;
    const double side = (ROOM - 6) / (double)(p->width > p->height ? p->width : p->height);
    for (int64_t i = 0, shown = 0; i < p->n && shown < MOST; i++) {
        if (class[i] == p->label[i])
            continue;
        const double left = LEFT + (double)shown++ * ROOM;
        for (int64_t k = 0; k < points; k++)
            if (p->pixel[i * points + k])
                fprintf(f, "<rect class='ink' x='%.2f' y='%.2f' width='%.2f' height='%.2f' fill-opacity='%.2f'/>\n",
                        left + (double)(k % p->width) * side, top + (double)(k / p->width) * side, side, side, p->pixel[i * points + k] / 255.0);
        frame(f, left, top, (double)p->width * side, (double)p->height * side);
        fprintf(f, "<text x='%.0f' y='%.0f'>%d as %d</text>\n", left, top + ROOM + 8, p->label[i], class[i]);
    }
}

static status draw(FILE *f, md_picture_net *plain, md_picture_net *coded, const fm_pictures *test, const uint8_t *class)
{
    const int lines = shown_ranges(coded), height = 352 + LINE * lines;
    fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' width='%d' height='%d' font-family='sans-serif' font-size='12'>\n"
               "<style>svg{--bg:#fff;--fg:#1c2126;--dim:#9aa4ae;--bar:#2f7fc1}"
               "@media (prefers-color-scheme:dark){svg{--bg:#14181c;--fg:#e4e9ee;--dim:#5b6670;--bar:#63b0f2}}"
               "text,.ink{fill:var(--fg)}.ink{shape-rendering:crispEdges}.bar{fill:var(--bar)}.frame{fill:none;stroke:var(--dim);stroke-width:.7}line{stroke:var(--dim)}"
               ".head{font-weight:bold}</style>\n<rect width='100%%' height='100%%' style='fill:var(--bg)'/>\n"
               "<text class='head' x='%d' y='20'>First layer, as it was given: ",
            WIDTH, height, WIDTH, height, LEFT);
    cl_html_text(f, plain->base.recipe.n ? plain->base.recipe.name : "floats");
    fputs("</text>\n", f);
    TRY(filters(f, plain, 28));
    fprintf(f, "<text class='head' x='%d' y='120'>First layer, by recipe ", LEFT);
    cl_html_text(f, coded->base.recipe.name);
    fputs(" (white: the largest weight of a filter, black: its opposite)</text>\n", f);
    TRY(filters(f, coded, 128));
    fprintf(f, "<text class='head' x='%d' y='220'>%s</text>\n", LEFT, lines ? "Ranges of results" : "Ranges of results: found at run time");
    const double top = ranges(f, coded, 232);
    fprintf(f, "<text class='head' x='%d' y='%.0f'>Test pictures that it takes for another class</text>\n", LEFT, top + 20);
    mistakes(f, test, class, top + 28);
    fputs("</svg>\n", f);
    return ferror(f) ? nb_fail(NB_IO, "cannot be written") : NB_OK;
}

status cl_picture_sheet(const char *path, md_picture_net *plain, md_picture_net *coded, const fm_pictures *test)
{
    nb_atomic out = {0};
    kd_picture_eval e;
    uint8_t *class = nb_alloc((size_t)test->n, 1);
    status s = class ? kd_picture_evaluate(&e, coded, test, class, NULL) : NB_NOMEM;
    if (s == NB_OK)
        s = nb_atomic_begin(&out, path);
    if (s == NB_OK) {
        s = draw(out.file, plain, coded, test, class);
        if (s == NB_OK)
            s = nb_atomic_commit(&out);
        else
            nb_fail_in(s, "%s", path);
    }
    nb_atomic_abort(&out);
    free(class);
    return s;
}
