/* compare_report.c - the comparison as one self-contained HTML page: the table, diagrams as inline SVG, no scripts, nothing loaded; light or dark as the
 * reader's system asks.
 */
#include "cli/compare.h"
#include "cli/plot.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char head[] =
    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
    "<meta name=\"color-scheme\" content=\"light dark\"><title>nibble compare</title>\n<style>\n"
    ":root{--bg:#fff;--fg:#1d2329;--dim:#5b6570;--grid:#dfe4e9;--c0:#1f6fb8;--c1:#c8500a;--c2:#2b8a3e;--c3:#b02a5b;--c4:#6b4fc4;--c5:#8a7a10;--c6:#0b7f86;--c7:#5b6570}\n"
    "@media (prefers-color-scheme:dark){:root{--bg:#14181c;--fg:#e4e9ee;--dim:#a2adb8;--grid:#333c45;--c0:#63b0f2;--c1:#f79a5c;--c2:#6fce83;--c3:#f283ab;"
    "--c4:#b5a0f7;--c5:#dccb5a;--c6:#4fc9cf;--c7:#a2adb8}}\n"
    "body{background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif;max-width:1340px;margin:0 auto;padding:20px}\n"
    "h1{font-size:22px;margin:0 0 4px}p.note,p.sub{color:var(--dim);font-size:13px;margin:6px 0}\n"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;margin:14px 0}th,td{padding:4px 10px;text-align:right;white-space:nowrap;"
    "border-bottom:1px solid var(--grid)}th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}td.why{text-align:left;white-space:normal;color:var(--dim)}\n"
    ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,560px),1fr));gap:26px}\n"
    "figure{margin:0;min-width:0}figcaption{font-weight:600;margin-bottom:4px;overflow-wrap:anywhere}svg{width:100%;height:auto;display:block}\n"
    "svg text{fill:var(--dim);font:12px system-ui,sans-serif}svg text.name{fill:var(--fg);font-size:13px}svg text.mark{fill:var(--fg);font-size:12px;font-weight:600;paint-order:stroke;stroke:var(--bg);stroke-width:3px;stroke-linejoin:round}\n"
    ".grid{stroke:var(--grid);stroke-width:1}.lead{stroke:var(--dim);stroke-width:.7}.frame{fill:none;stroke:var(--dim)}\n"
    ".line{fill:none;stroke:var(--c);stroke-width:2}.cut{stroke:var(--c);stroke-width:1.6;stroke-dasharray:5 4}.bar{fill:var(--c);opacity:.55}.dot{fill:var(--c)}\n"
    ".s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}.s4{--c:var(--c4)}.s5{--c:var(--c5)}.s6{--c:var(--c6)}.s7{--c:var(--c7)}\n"
    ".key{font-size:13px;display:flex;flex-wrap:wrap;gap:3px 16px;margin-top:4px}.key span{white-space:nowrap}.key i{display:inline-block;width:16px;height:0;margin-right:6px;"
    "vertical-align:middle;border-top:3px solid var(--c)}.key i.dash{border-top-style:dashed}.key i.dot{width:9px;height:9px;border:0;border-radius:5px;background:var(--c)}\n"
    "</style></head><body>\n";

/* ---- the table ------------------------------------------------------------------------------ */

static void cell(FILE *f, const char *fmt, double x)
{
    fputs("<td>", f);
    if (isfinite(x))
        fprintf(f, fmt, x);
    fputs("</td>", f);
}

static void write_row(FILE *f, const comparison *c, int64_t i)
{
    const cl_row_of *r = &c->row[i];
    char size[32] = "", memory[32] = "", time[32] = "";
    fprintf(f, "<tr><td>%lld</td><td>", (long long)i);
    cl_html_text(f, r->method);
    fputs("</td><td>", f);
    cl_html_text(f, r->recipe);
    fputs("</td>", f);
    if (*r->error) {
        fputs("<td class=\"why\" colspan=\"11\">", f);
        cl_html_text(f, r->error);
        fputs("</td></tr>\n", f);
        return;
    }
    if (r->bytes >= 0)
        cl_size(size, sizeof size, (double)r->bytes);
    if (r->peak_bytes >= 0)
        cl_size(memory, sizeof memory, (double)r->peak_bytes);
    if (isfinite(r->seconds))
        cl_duration(time, sizeof time, r->seconds);
    cell(f, "%.2f", r->bpw);
    fprintf(f, "<td>%s</td>", size);
    cell(f, "%.2f", (double)r->bytes / (double)c->fp16_bytes);
    fprintf(f, "<td>%.3f <small>%.2f\xE2\x80\x93%.2f</small></td>", r->ppl, r->ppl_low, r->ppl_high);
    cell(f, "%.4f", r->kl);
    cell(f, "%.3f", r->same_top);
    fprintf(f, "<td>%.0f <small>%.2f\xC3\x97</small></td><td>%.0f <small>%.2f\xC3\x97</small></td>", r->prefill, r->prefill_ratio, r->decode, r->decode_ratio);
    fprintf(f, "<td>%s</td><td>%s</td></tr>\n", time, memory);
}

static void write_table(FILE *f, const comparison *c)
{
    fputs("<div class=\"wide\"><table><tr><th></th><th>method</th><th>recipe</th><th>bits / weight</th><th>size</th><th>of FP16</th><th>perplexity <small>95 %</small></th>"
          "<th>KL</th><th>same top</th><th>prefill tokens/s</th><th>decode tokens/s</th><th>time</th><th>peak memory</th></tr>\n",
          f);
    for (int64_t i = 0; i < c->n; i++)
        write_row(f, c, i);
    fputs("</table></div>\n", f);
}

/* ---- perplexity against bits ---------------------------------------------------------------- */

static status draw_bits(FILE *f, const comparison *c)
{
    cl_mark *mark = nb_alloc_zeroed((size_t)c->n, sizeof *mark);
    char(*name)[340] = nb_alloc_zeroed((size_t)c->n, sizeof *name);
    double x0 = INFINITY, x1 = 0, y0 = INFINITY, y1 = 0;
    int n = 0;
    for (int64_t i = 0; mark && name && i < c->n; i++) {
        const cl_row_of *r = &c->row[i];
        int series = 0; /* a colour for each recipe, in the order they appear */
        if (!isfinite(r->ppl) || !isfinite(r->bpw))
            continue;
        for (int m = 0; m < n; m++)
            series = mark[m].series >= series ? mark[m].series + 1 : series; /* beyond the last colour they begin anew */
        for (int m = 0; m < n; m++)
            series = !strcmp(c->row[mark[m].number].recipe, r->recipe) ? mark[m].series : series;
        snprintf(name[n], sizeof *name, "%s %s", r->method, r->recipe);
        y0 = fmin(y0, r->ppl);
        y1 = fmax(y1, r->ppl);
        if (!strcmp(r->method, "float"))
            continue; /* a line: their bits are far away */
        mark[n] = (cl_mark){r->bpw, r->ppl, series % CL_GREY, (int)i, name[n]};
        n++;
        x0 = fmin(x0, r->bpw);
        x1 = fmax(x1, r->bpw);
    }
    const status s = mark && name ? NB_OK : NB_NOMEM;
    if (s == NB_OK && n) {
        cl_plot p = {.title = "Perplexity against bits per weight", .x_name = "bits per weight, everything counted", .y_name = "perplexity", .log_y = true,
                     .note = "Numbers are those of the table's rows; colours are recipes. Below and to the left is better. Perplexity is logarithmic."};
        const double margin = 0.1 * (x1 - x0) + 0.1, line_x[2] = {x0 - margin, x1 + margin}, line_y[2] = {c->row[0].ppl, c->row[0].ppl};
        cl_plot_begin(&p, f, x0 - margin, x1 + margin, y0 * 0.97, y1 * 1.03);
        cl_plot_line(&p, line_x, line_y, 2, CL_GREY, "0 float");
        cl_plot_marks(&p, mark, n);
        cl_plot_end(&p);
    }
    free(mark);
    free(name);
    return s;
}

/* ---- group size ----------------------------------------------------------------------------- */

static status write_recipe(const comparison *c, char **path, const char *grain)
{
    char name[64], text[256];
    snprintf(name, sizeof name, "w4-%s.txt", grain);
    for (char *p = name; *p; p++)
        *p = *p == ':' ? '-' : *p;
    snprintf(text, sizeof text,
             "layers.*.weight int4 %s f16 learned\nembed.weight int8 narrow row f16 learned\nhead.weight int8 narrow row f16 learned\n", grain);
    *path = nb_path_join(c->work, name);
    return !*path ? NB_NOMEM : nb_path_exists(*path) ? NB_OK : compare_write(*path, text);
}

/* Rows of their own, quantized, scored and kept as those of the table; layers of 4 bits by ever larger groups. */
static status draw_groups(FILE *f, const comparison *c)
{
    enum { SIZES = 6 };
    static const char *const grain[SIZES] = {"group:16", "group:32", "group:64", "group:128", "group:256", "row"},
                             *const name[SIZES] = {"16", "32", "64", "128", "256", "whole row"};
    static const char *const method[2] = {"rtn", "mse"};
    comparison own = *c;
    double x[SIZES], kl[2][SIZES], bytes[SIZES], most_kl = 0, most_bytes = 0;
    own.row = NULL;
    own.n = own.capacity = 0;
    status s = compare_add(&own, "float", "", c->model) ? NB_OK : NB_NOMEM;
    for (int i = 0; i < SIZES && s == NB_OK; i++) {
        char *path;
        s = write_recipe(c, &path, grain[i]);
        for (int k = 0; k < 2 && s == NB_OK; k++)
            s = compare_add(&own, method[k], path, c->model) ? NB_OK : NB_NOMEM;
        free(path);
    }
    for (int64_t i = 1; i < own.n && s == NB_OK; i++)
        s = compare_make_row(&own, i);
    for (int i = 0; i < SIZES && s == NB_OK; i++) {
        x[i] = i;
        for (int k = 0; k < 2; k++) {
            kl[k][i] = own.row[1 + 2 * i + k].kl;
            most_kl = kl[k][i] > most_kl ? kl[k][i] : most_kl;
        }
        const int64_t n = own.row[1 + 2 * i].bytes;
        bytes[i] = n >= 0 ? (double)n / 1e6 : NAN;
        most_bytes = bytes[i] > most_bytes ? bytes[i] : most_bytes;
    }
    free(own.row);
    TRY(s);
    cl_plot p = {.title = "Accuracy against group size", .x_name = "weights that share a scale", .y_name = "KL, nats per token", .tick = name, .n_ticks = SIZES,
                 .note = "Layers of 4 bits with fp16 scales, embedding and head of 8 bits in rows, float inputs."};
    cl_plot_begin(&p, f, -0.3, SIZES - 0.7, 0, most_kl * 1.05);
    for (int k = 0; k < 2; k++)
        cl_plot_line(&p, x, kl[k], SIZES, k, k == 0 ? "rounded to nearest" : "least squares");
    cl_plot_end(&p);
    cl_plot b = {.title = "Bytes against group size", .x_name = "weights that share a scale", .y_name = "MB", .tick = name, .n_ticks = SIZES,
                 .note = "Codes, scales and what stays in floats, of the same files."};
    cl_plot_begin(&b, f, -0.5, SIZES - 0.5, 0, most_bytes * 1.05);
    cl_plot_bars(&b, x, bytes, SIZES, 0.6, 0, NULL);
    cl_plot_end(&b);
    return NB_OK;
}

/* ---- training curves ------------------------------------------------------------------------ */

typedef struct {
    double *x, *y, *held_x, *held_y;
    int64_t n, held;
} curve;

static void curve_free(curve *k)
{
    free(k->x);
    free(k->y);
    free(k->held_x);
    free(k->held_y);
    *k = (curve){0};
}

/* metrics.jsonl: step and kl (or loss) of every step; of an evaluation step and heldout_kl. */
static status read_curve(curve *k, const char *path)
{
    nb_mapped file;
    TRY(nb_map(&file, path));
    int64_t lines = 0;
    for (size_t i = 0; i < file.bytes; i++)
        lines += file.data[i] == '\n';
    const size_t room = (size_t)lines + 1;
    *k = (curve){nb_alloc(room, sizeof(double)), nb_alloc(room, sizeof(double)), nb_alloc(room, sizeof(double)), nb_alloc(room, sizeof(double)), 0, 0};
    const bool enough = k->x && k->y && k->held_x && k->held_y;
    const char *p = (const char *)file.data, *end = p + file.bytes;
    while (enough && p < end) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        if (!stop)
            break;
        nb_json *j = nb_json_parse(p, (size_t)(stop - p));
        const double step = nb_json_number(nb_json_get(j, "step"), NAN), loss = nb_json_number(nb_json_get(j, "loss"), NAN),
                     kl = nb_json_number(nb_json_get(j, "kl"), loss), held = nb_json_number(nb_json_get(j, "heldout_kl"), NAN);
        nb_json_free(j);
        p = stop + 1;
        if (isfinite(step) && isfinite(kl)) {
            k->x[k->n] = step;
            k->y[k->n++] = kl;
        }
        if (isfinite(step) && isfinite(held)) {
            k->held_x[k->held] = step;
            k->held_y[k->held++] = held;
        }
    }
    nb_unmap(&file);
    return enough ? NB_OK : NB_NOMEM;
}

/* Means of neighbours, at most `most` points: a curve of thousands of steps stays legible and small. */
static void thin(curve *k, int64_t most)
{
    const int64_t each = (k->n + most - 1) / most;
    int64_t n = 0;
    for (int64_t i = 0; each > 1 && i < k->n; i += each, n++) {
        const int64_t m = k->n - i < each ? k->n - i : each;
        double x = 0, y = 0;
        for (int64_t e = i; e < i + m; e++) {
            x += k->x[e] / (double)m;
            y += k->y[e] / (double)m;
        }
        k->x[n] = x;
        k->y[n] = y;
    }
    k->n = each > 1 ? n : k->n;
}

static status draw_training(FILE *f, const comparison *c)
{
    enum { RUNS = CL_SERIES / 2 /* two curves each */, POINTS = 300 };
    curve run[RUNS] = {{0}};
    char name[RUNS][200];
    double last = 1, least = INFINITY, most = 0;
    int n = 0;
    status s = NB_OK;
    for (int64_t i = 0; i < c->n && n < RUNS && s == NB_OK; i++) {
        char *path = nb_path_is_folder(c->row[i].path) && !*c->row[i].how ? nb_path_join(c->row[i].path, "metrics.jsonl") : NULL;
        if (path && nb_path_exists(path)) {
            snprintf(name[n], sizeof *name, "%s", c->row[i].method);
            s = read_curve(&run[n], path);
            thin(&run[n++], POINTS);
        }
        free(path);
    }
    for (int r = 0; r < n; r++)
        for (int64_t i = 0; i < run[r].n; i++) {
            last = fmax(last, run[r].x[i]);
            least = run[r].y[i] > 0 ? fmin(least, run[r].y[i]) : least;
            most = fmax(most, run[r].y[i]);
        }
    for (int r = 0; r < n; r++)
        for (int64_t i = 0; i < run[r].held; i++) {
            least = run[r].held_y[i] > 0 ? fmin(least, run[r].held_y[i]) : least;
            most = fmax(most, run[r].held_y[i]);
        }
    if (s == NB_OK && n && most > 0) {
        cl_plot p = {.title = "Training", .x_name = "step", .y_name = "KL or loss, nats per token", .log_y = true,
                     .note = "Of every step (means of neighbours in long runs); held out: at evaluations, joined. Logarithmic."};
        cl_plot_begin(&p, f, 0, last, least * 0.95, most * 1.05);
        for (int r = 0; r < n; r++) {
            char held[sizeof *name + 16];
            snprintf(held, sizeof held, "%.190s, held out", name[r]);
            cl_plot_line(&p, run[r].x, run[r].y, run[r].n, 2 * r, name[r]);
            if (run[r].held)
                cl_plot_line(&p, run[r].held_x, run[r].held_y, run[r].held, 2 * r + 1, held);
        }
        cl_plot_end(&p);
    }
    for (int r = 0; r < n; r++)
        curve_free(&run[r]);
    return s;
}

/* ---- the page ------------------------------------------------------------------------------- */

static status write_page(FILE *f, const comparison *c)
{
    char recipe[160];
    snprintf(recipe, sizeof recipe, "%.*s", (int)strcspn(c->o->recipes, ","), c->o->recipes);
    fputs(head, f);
    fputs("<h1>nibble compare: ", f);
    cl_html_text(f, nb_path_name(c->model));
    fprintf(f, "</h1>\n<p class=\"sub\">Methods saw %lld windows of %lld tokens of ", (long long)c->o->samples, (long long)c->o->length);
    cl_html_text(f, nb_path_name(c->calibration));
    fputs("; perplexity, KL to the float model and same top token are of ", f);
    cl_html_text(f, nb_path_name(c->scored));
    fputs(". Speeds beside those of the float row of the same run.</p>\n", f);
    write_table(f, c);
    fputs("<div class=\"plots\">\n", f);
    TRY(draw_bits(f, c));
    TRY(draw_groups(f, c));
    TRY(compare_look(c, f, recipe));
    TRY(draw_training(f, c));
    fputs("</div>\n</body></html>\n", f);
    return NB_OK;
}

status compare_report(const comparison *c, const char *path)
{
    nb_atomic file = {0};
    status s = nb_atomic_begin(&file, path);
    if (s == NB_OK)
        s = write_page(file.file, c);
    if (s == NB_OK)
        s = nb_atomic_commit(&file);
    nb_atomic_abort(&file);
    return s;
}
