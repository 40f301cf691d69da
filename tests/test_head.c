/* test_head.c - the head and its losses against their definitions, written out in double. */
#include "autograd/autograd.h"
#include "coded.h"
#include "suite.h"
#include <math.h>
#include <string.h>

enum { HM = 600, HC = 11, HV = 23 }; /* two chunks, the second one short */

static status stored_teacher(void *ctx, real *dst, int64_t row, int64_t n)
{
    memcpy(dst, (const real *)ctx + row * HV, (size_t)(n * HV) * sizeof *dst);
    return NB_OK;
}

static status failing_teacher(void *ctx, real *dst, int64_t row, int64_t n)
{
    (void)ctx;
    (void)dst;
    (void)n;
    return nb_fail(NB_IO, "row %lld is lost", (long long)row);
}

typedef struct {
    const char *name;
    ag_head_loss loss;
    bool coded;
} head_case;

static const head_case head_cases[] = {
    {"cross entropy", {.ce = 1}, false},
    {"KL", {.kl = 1, .teacher = stored_teacher}, false},
    {"KL on codes", {.kl = 1, .teacher = stored_teacher}, true},
    {"KL and cross entropy at temperature 2",
     {.kl = 1, .ce = (real)0.5, .temperature = 2, .teacher = stored_teacher},
     false},
    {"reverse KL", {.reverse_kl = 1, .teacher = stored_teacher}, false},
    {"both at temperature 0.5",
     {.kl = (real)0.7, .reverse_kl = (real)0.3, .temperature = (real)0.5, .teacher = stored_teacher},
     false},
    {"mean square", {.mse = 1, .teacher = stored_teacher}, false},
    {"cosine", {.cosine = 1, .teacher = stored_teacher}, false},
    {"a teacher for the report alone", {.ce = 1, .teacher = stored_teacher}, false},
};

static double log_sum(const double *z, double t)
{
    double s = 0;
    for (int v = 0; v < HV; v++)
        s += exp(z[v] / t);
    return t == 0 ? 0 : log(s);
}

/* One row straight from the definitions: the loss, and dz [V]. */
static double naive_row(double *dz, const double *z, const double *zt, int target, const ag_head_loss *l)
{
    double t = l->temperature == 0 ? 1 : (double)l->temperature, lq = log_sum(z, t), lp = log_sum(zt, t),
           l1 = log_sum(z, 1);
    double kl = 0, reverse = 0, square = 0, dot = 0, zz = 0, tt = 0;
    for (int v = 0; v < HV; v++) {
        double logp = zt[v] / t - lp, logq = z[v] / t - lq;
        kl += exp(logp) * (logp - logq);
        reverse += exp(logq) * (logq - logp);
        square += (z[v] - zt[v]) * (z[v] - zt[v]);
        dot += z[v] * zt[v];
        zz += z[v] * z[v];
        tt += zt[v] * zt[v];
    }
    double cosine = dot / sqrt(zz * tt);
    for (int v = 0; v < HV; v++) {
        double logp = zt[v] / t - lp, logq = z[v] / t - lq;
        dz[v] = (double)l->ce * (exp(z[v] - l1) - (v == target)) + (double)l->kl * t * (exp(logq) - exp(logp)) +
                (double)l->reverse_kl * t * exp(logq) * (logq - logp - reverse) +
                (double)l->mse * 2 * (z[v] - zt[v]) / HV +
                (double)l->cosine * (z[v] * cosine / zz - zt[v] / sqrt(zz * tt));
    }
    return (double)l->ce * (l1 - z[target]) + (double)l->kl * t * t * kl + (double)l->reverse_kl * t * t * reverse +
           (double)l->mse * square / HV + (double)l->cosine * (1 - cosine);
}

typedef struct {
    real x[HM * HC], w[HV * HC], b[HV], teacher[HM * HV];
    int32_t target[HM];
} head_data;

static void head_fill(head_data *h)
{
    fill(h->x, HM * HC, 1, 1);
    fill(h->w, HV * HC, 2, 1);
    fill(h->b, HV, 3, 1);
    fill(h->teacher, HM * HV, 4, 3);
    for (int i = 0; i < HM; i++)
        h->target[i] = i % 5 == 2 ? -1 : i * 7 % HV;
}

START_TEST(head_equals_its_definition)
{
    static head_data h;
    static real gx[HM * HC], gw[HV * HC], gb[HV];
    static double wx[HM * HC], ww[HV * HC], wb[HV];
    const head_case *c = &head_cases[_i];
    ag_head_report report;
    ag_head_loss loss = c->loss;
    kn_packed packed = {0};
    head_fill(&h);
    memset(gx, 0, sizeof gx);
    memset(gw, 0, sizeof gw);
    memset(gb, 0, sizeof gb);
    memset(wx, 0, sizeof wx);
    memset(ww, 0, sizeof ww);
    memset(wb, 0, sizeof wb);
    loss.ctx = h.teacher;
    ag_tape t = {0};
    ag_tensor *x = ag_leaf(&t, h.x, gx, 2, (int64_t[]){HM, HC}), *w = ag_leaf(&t, h.w, gw, 2, (int64_t[]){HV, HC});
    if (c->coded) {
        x = coded(&t, x, kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32));
        w = coded(&t, w, kn_grid_int(4, false, false, KN_ROW, 0, KN_SCALE_F32));
        ck_assert_int_eq(kn_pack(&packed, w->codes), NB_OK);
        w->packed = &packed;
    }
    ag_tensor *out = ag_head(&t, x, w, ag_leaf(&t, h.b, gb, 1, (int64_t[]){HV}), h.target, &loss, &report);
    ck_assert_msg(out != NULL, "%s", nb_fail_message());
    double got = (double)out->x[0];
    static real xv[HM * HC], wv[HV * HC];
    memcpy(xv, ag_value(x), sizeof xv);
    memcpy(wv, ag_value(w), sizeof wv);
    ck_assert_int_eq(ag_backward(&t, ag_scale(&t, out, 3)),
                     NB_OK); /* 3: the gradient is scaled by what comes from above */

    double want = 0, ce = 0, kl = 0;
    int64_t rows = 0, same = 0;
    for (int i = 0; i < HM; i++)
        rows += h.target[i] >= 0;
    for (int i = 0; i < HM; i++) {
        double z[HV], zt[HV], dz[HV], unused[HV];
        int top = 0, top_t = 0;
        for (int v = 0; v < HV; v++) {
            z[v] = (double)h.b[v];
            for (int k = 0; k < HC; k++)
                z[v] += (double)xv[i * HC + k] * (double)wv[v * HC + k];
            zt[v] = (double)h.teacher[i * HV + v];
            top = z[v] > z[top] ? v : top;
            top_t = zt[v] > zt[top_t] ? v : top_t;
        }
        if (h.target[i] < 0)
            continue;
        want += naive_row(dz, z, zt, h.target[i], &loss);
        ce += naive_row(unused, z, zt, h.target[i], &(ag_head_loss){.ce = 1});
        kl += loss.teacher ? naive_row(unused, z, zt, h.target[i], &(ag_head_loss){.kl = 1}) : 0;
        same += loss.teacher && top == top_t;
        for (int v = 0; v < HV; v++) {
            double d = 3 * dz[v] / (double)rows;
            wb[v] += d;
            for (int k = 0; k < HC; k++) {
                wx[i * HC + k] += d * (double)wv[v * HC + k];
                ww[v * HC + k] += d * (double)xv[i * HC + k];
            }
        }
    }
    want /= (double)rows;
    ck_assert_msg(fabs(got - want) < 1e-6 * (1 + fabs(want)), "%s: loss %.8g, wanted %.8g", c->name, got, want);
    near(c->name, "dx", gx, wx, HM * HC, 2e-6);
    near(c->name, "dw", gw, ww, HV * HC, 2e-5);
    near(c->name, "db", gb, wb, HV, 2e-5);
    ck_assert_int_eq(report.rows, rows);
    ck_assert_int_eq(report.same_top, same);
    ck_assert(fabs(report.ce - ce) < 1e-5 * ce && fabs(report.kl - kl) <= 1e-5 * kl);
    kn_packed_free(&packed);
    ag_tape_free(&t);
}
END_TEST

START_TEST(head_without_scored_rows_is_zero)
{
    static head_data h;
    static real gx[HM * HC];
    head_fill(&h);
    for (int i = 0; i < HM; i++)
        h.target[i] = -1;
    ag_head_report report;
    ag_tape t = {0};
    ag_tensor *out =
        ag_head(&t, ag_leaf(&t, h.x, gx, 2, (int64_t[]){HM, HC}), ag_leaf(&t, h.w, NULL, 2, (int64_t[]){HV, HC}), NULL,
                h.target, &(ag_head_loss){.ce = 1}, &report);
    ck_assert(out && out->x[0] == 0);
    ck_assert_int_eq(report.rows, 0);
    ck_assert_int_eq(ag_backward(&t, out), NB_OK);
    for (int i = 0; i < HM * HC; i++)
        ck_assert(gx[i] == 0);
    ag_tape_free(&t);
}
END_TEST

START_TEST(head_passes_on_the_teachers_failure)
{
    static head_data h;
    head_fill(&h);
    ag_tape t = {0};
    ag_tensor *out =
        ag_head(&t, ag_leaf(&t, h.x, NULL, 2, (int64_t[]){HM, HC}), ag_leaf(&t, h.w, NULL, 2, (int64_t[]){HV, HC}),
                NULL, h.target, &(ag_head_loss){.kl = 1, .teacher = failing_teacher}, NULL);
    ck_assert_ptr_null(out);
    ck_assert_int_eq(ag_status(&t), NB_IO);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "row 0 is lost"));
    ag_tape_free(&t);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

int main(void)
{
    Suite *s = suite_create("head");
    TCase *tc = tcase_create("head");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, head_equals_its_definition, 0, COUNT(head_cases));
    tcase_add_test(tc, head_without_scored_rows_is_zero);
    tcase_add_test(tc, head_passes_on_the_teachers_failure);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
