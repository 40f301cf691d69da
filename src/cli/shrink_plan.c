/* shrink_plan.c - how many steps the time allows, and the data for them. plan.json fixes both: 1/r seconds a token to train on and 1/g to
 * generate, measured once.
 */
#include "cli/shrink.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double RESERVED = 0.05; /* of the time: what is not counted below */

/* ---- the plan ----------------------------------------------------------------------------- */

static status read_plan(shrinker *s, bool *found)
{
    nb_mapped file;
    *found = nb_path_exists(s->plan_path);
    if (!*found)
        return NB_OK;
    TRY(nb_map(&file, s->plan_path));
    nb_json *j = nb_json_parse((const char *)file.data, file.bytes);
    nb_unmap(&file);
    s->steps = (int64_t)nb_json_number(nb_json_get(j, "steps"), 0);
    s->tokens = (int64_t)nb_json_number(nb_json_get(j, "tokens"), 0);
    const char *recipe = nb_json_string(nb_json_get(j, "recipe"));
    const bool same = recipe && !strcmp(recipe, s->o->recipe) && nb_json_bool(nb_json_get(j, "mixed"), false) == s->o->mixed;
    const double seconds = nb_json_number(nb_json_get(j, "seconds"), 0), seed = nb_json_number(nb_json_get(j, "seed"), 0);
    nb_json_free(j);
    if (s->steps < 1 || s->tokens < 1)
        return nb_fail(NB_FORMAT, "%s: is no plan of nibble shrink; remove the folder to start over", s->plan_path);
    if (!same || seconds != s->o->seconds || seed != (double)s->o->common.seed)
        return nb_fail(NB_USAGE, "%s holds a run of another --recipe, --mixed, --time or --seed: say the same again to resume it, or name another folder (--work)",
                       s->work);
    return NB_OK;
}

static status write_plan(const shrinker *s, double trained, double generated)
{
    nb_writer w = {0};
    nb_atomic file = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_string(&w, "recipe", s->o->recipe);
    nb_json_put_bool(&w, "mixed", s->o->mixed);
    nb_json_put_number(&w, "seconds", s->o->seconds);
    nb_json_put_int(&w, "seed", (int64_t)s->o->common.seed);
    nb_json_put_int(&w, "steps", s->steps);
    nb_json_put_int(&w, "tokens", s->tokens);
    nb_json_put_number(&w, "trained_tokens_per_second", trained);
    nb_json_put_number(&w, "generated_tokens_per_second", generated);
    nb_json_close(&w, '}');
    char *text = nb_json_text(&w);
    status st = text ? nb_atomic_begin(&file, s->plan_path) : NB_NOMEM;
    if (st == NB_OK && fputs(text, file.file) < 0)
        st = nb_fail(NB_IO, "%s: cannot be written", s->plan_path);
    if (st == NB_OK)
        st = nb_atomic_commit(&file);
    nb_atomic_abort(&file);
    free(text);
    return st;
}

/* Embedding and head lose nothing at 8 bits, so training them would be for nothing. */
static bool has_wide_ends(const md_model *student)
{
    static const char *const end[] = {"embed.weight", "head.weight"};
    bool wide = true;
    for (int i = 0; i < 2; i++) {
        const fq_site *site = fq_site_find(&student->sites, end[i]);
        wide = wide && (!site || site->spec.grid.bits == 0 || site->spec.grid.bits >= 8);
    }
    return wide;
}

kd_train_options shrink_training(const shrinker *s, const md_model *student)
{
    kd_train_options k = kd_train_defaults(true, true, &student->config);
    k.batch = s->batch;
    k.ctx = s->ctx;
    k.seed = s->o->common.seed;
    k.precision = s->precision;
    k.text_share = s->o->text_share;
    k.steps = s->steps > 0 ? s->steps : 1;
    k.eval_every = (k.steps + EVALUATIONS - 1) / EVALUATIONS;
    k.eval_tokens = shrink_is_large(s) ? EVAL_TOKENS : HELDOUT_TOKENS;
    k.freeze_ends = shrink_is_large(s) && has_wide_ends(student);
    return k;
}

status shrink_open_student(const shrinker *s, md_model *student)
{
    TRY(cl_open_model(student, s->model, &s->o->common, s->o->recipe, true));
    if (student->recipe.n == 0)
        return nb_fail(NB_USAGE, "--recipe %s leaves the model in floats", s->o->recipe);
    return NB_OK;
}

status shrink_open_start(const shrinker *s, md_model *student)
{
    TRY(cl_open_model(student, s->start_path, &s->o->common, NULL, true));
    return md_loosen(student, &s->teacher);
}

/* Times three steps on the held-out samples; the student is thrown away. */
static status time_training(shrinker *s, double *rate)
{
    md_model student = {0};
    kd_train_report r;
    const kd_run_options how = {.dry_run = true};
    const kd_train_data data = {.data = &s->heldout, .heldout = &s->heldout};
    status st = shrink_open_student(s, &student);
    if (st == NB_OK) {
        kd_train_options k = shrink_training(s, &student);
        k.start = FQ_START_ABSMAX; /* any will do */
        st = kd_train(s->work, &student, &s->teacher, &data, &k, &how, &r);
    }
    md_free(&student);
    *rate = st == NB_OK ? r.tokens_per_second : 0;
    return st;
}

/* Seconds left for training and what it needs, in units of tokens trained: a token evaluated with both models costs about as much. */
static double tokens_left(const shrinker *s, double each)
{
    const bool large = shrink_is_large(s);
    const double evaluated = large ? EVALUATIONS * EVAL_TOKENS + 2 * MEASURED_TOKENS : (EVALUATIONS + 2) * HELDOUT_TOKENS;
    const double left = s->o->seconds * (1 - RESERVED) - (nb_seconds() - s->begin) - evaluated / s->trained;
    return left / each;
}

static status make_plan(shrinker *s, double generated)
{
    TRY(time_training(s, &s->trained));
    const double own = s->o->text ? 1 - s->o->text_share : 1; /* share of rows that are generated */
    const double tokens = tokens_left(s, 1 / s->trained + own / generated) - (CALIBRATED_COST + (s->o->mixed ? MIXED_COST : 0)) * (double)s->ctx;
    s->steps = (int64_t)(tokens / (double)(s->batch * s->ctx));
    if (s->steps < 10)
        return nb_fail(NB_USAGE, "--time %s is too short here: %.0f tokens/s trained and %.0f generated make %lld steps, at least 10 are needed",
                       s->o->time, s->trained, generated, (long long)(s->steps > 0 ? s->steps : 0));
    s->tokens = (int64_t)ceil((double)s->steps * (double)s->batch * own) * s->ctx;
    return write_plan(s, s->trained, generated);
}

/* Data and start done sooner than thought leave time for more steps, later for fewer; rows may then be seen twice. */
static status mend_plan(shrinker *s, double generated)
{
    const double tokens = tokens_left(s, 1 / s->trained);
    s->steps = (int64_t)(tokens / (double)(s->batch * s->ctx));
    s->steps = s->steps > 10 ? s->steps : 10;
    return write_plan(s, s->trained, generated);
}

/* ---- data --------------------------------------------------------------------------------- */

/* With a text beside them, rows to train on begin with passages of it: what the model says about the user's matter. */
static status generate(shrinker *s, const char *path, int64_t tokens, uint64_t seed, const char *what, fm_tokens *prompts, kd_data_report *r)
{
    static const char separator[] = "<|endoftext|>";
    cl_progress line;
    const bool mixed = fm_tokenizer_find(&s->teacher.tokenizer, separator, strlen(separator)) >= 0;
    const bool bos = s->teacher.config.bos >= 0;
    const kd_data_options k = {.start = !bos ? KD_START_HYBRID : mixed ? KD_START_MIXED : KD_START_BOS,
                               .sampling = {.temperature = 1},
                               .tokens = tokens,
                               .ctx = s->ctx,
                               .seed = seed,
                               .precision = s->precision,
                               .prompts = prompts,
                               .prompt_length = s->ctx < 2 * PROMPT ? s->ctx / 2 : PROMPT};
    const nb_progress progress = cl_progress_start(&line, what, "tokens", s->o->common.quiet);
    status st = kd_generate(&s->teacher, &k, path, false, &progress, r);
    cl_progress_end(&line);
    return st;
}

/* A second of generation, for its rate: into a file that is thrown away. */
static status time_generation(shrinker *s, double *rate)
{
    kd_data_report r;
    char *path = nb_path_join(s->work, "timing.h5");
    if (!path)
        return NB_NOMEM;
    status st = generate(s, path, (shrink_is_large(s) ? HELDOUT_ROWS : 64) * s->ctx, s->o->common.seed + 2, "timing", NULL, &r);
    remove(path);
    free(path);
    *rate = st == NB_OK ? (double)r.tokens / r.seconds : 0;
    return st;
}

static status run_method(shrinker *s, md_model *m, const char *name, const char *what)
{
    cl_progress line;
    pt_options k = pt_defaults();
    const pt_method *method = pt_method_find(name);
    const nb_progress progress = cl_progress_start(&line, what, method->unit, s->o->common.quiet);
    k.data = s->o->text ? &s->text : &s->data;
    k.seed = s->o->common.seed;
    k.calibration = (kd_calibration){.samples = CALIBRATED, .length = s->ctx, .seed = k.seed, .precision = s->precision, .progress = &progress};
    const status st = method->run(m, &k);
    cl_progress_end(&line);
    return st;
}

/* Bits for every weight, and whether the file can hold them. */
static status mix(shrinker *s, md_model *m)
{
    char report[1024];
    const md_target *target = s->target ? md_target_find(s->target) : NULL;
    TRY(run_method(s, m, "mixed", "bits"));
    return target ? target->check(m, target, report, sizeof report) : NB_OK;
}

/* GPTQ weighted by Fisher information on the float model, whose codes and ranges training begins with: by what the user's text says, where there is one. */
static status find_start(shrinker *s)
{
    md_model m = {0};
    status st = shrink_open_student(s, &m);
    if (st == NB_OK && s->o->mixed)
        st = mix(s, &m);
    if (st == NB_OK)
        st = run_method(s, &m, "fisher", "start");
    if (st == NB_OK)
        st = md_save_folded(&m, s->start_path, true);
    md_free(&m);
    return st;
}

status shrink_prepare(shrinker *s)
{
    bool planned;
    const int64_t held = shrink_is_large(s) ? HELDOUT_ROWS * s->ctx : HELDOUT_TOKENS;
    kd_data_report r = {0};
    TRY(read_plan(s, &planned));
    if (!nb_path_exists(s->heldout_path))
        TRY(generate(s, s->heldout_path, held, s->o->common.seed + 1, "held-out samples", NULL, &r));
    TRY(cl_open_data(&s->heldout, s->heldout_path, &s->o->common, &s->teacher));
    if (!planned) {
        double rate = r.tokens > r.resumed_tokens ? (double)(r.tokens - r.resumed_tokens) / r.seconds : 0;
        if (rate == 0)
            TRY(time_generation(s, &rate));
        TRY(make_plan(s, rate));
    }
    if (!s->o->common.quiet)
        cl_say("%s: %lld steps of %lld tokens, %lld tokens to generate\n", s->plan_path, (long long)s->steps,
               (long long)(s->batch * s->ctx), (long long)s->tokens);
    if (s->o->text)
        TRY(cl_open_data(&s->text, s->o->text, &s->o->common, &s->teacher));
    double generated = 0;
    if (!nb_path_exists(s->data_path)) {
        TRY(generate(s, s->data_path, s->tokens, s->o->common.seed, "generating", s->o->text ? &s->text : NULL, &r));
        generated = (double)r.tokens / r.seconds;
    }
    TRY(cl_open_data(&s->data, s->data_path, &s->o->common, &s->teacher));
    if (!nb_path_exists(s->start_path))
        TRY(find_start(s));
    if (planned || generated == 0)
        return NB_OK;
    TRY(mend_plan(s, generated));
    if (!s->o->common.quiet)
        cl_say("%s: %lld steps in the time that is left\n", s->plan_path, (long long)s->steps);
    return NB_OK;
}
