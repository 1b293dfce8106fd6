/* How the threads of a team take items, sleep and wake. */

#define _GNU_SOURCE /* affinity */
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

#include "team.h"

#define HUGE_PAGE 2097152 /* bytes */
#define HELPER_SPINS 4000 /* about 60 us, a gap between two passes; then it sleeps */
#define LEADER_SPINS 2000 /* then it sleeps as well, and somebody else can run, perhaps the one whom it waits for */
#define CLAIMS 3          /* a thread takes this part of its share of what is left */
#define MOST_PATIENCE 64  /* passes */

typedef struct {
    Team *team;
    int32_t id;
} Seat;

#define FIELD 20
#define BEGINNING(ticket) ((int32_t)((ticket) & ((1u << FIELD) - 1)))
#define END(ticket) ((int32_t)((ticket) >> FIELD & ((1u << FIELD) - 1)))

static void pause_briefly(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Do items of the present work until none is left, many at a time at first: what threads tell each other is slow, above
 * all from one group of cores to another. */
static void take_items(Team *team, int32_t worker) {
    unsigned long long seen = atomic_load_explicit(&team->ticket, memory_order_acquire);
    while (BEGINNING(seen) < END(seen)) {
        int32_t beginning = BEGINNING(seen), end = END(seen), count = (end - beginning) / (CLAIMS * team->size);
        if (count < 1) count = 1;
        unsigned long long taken = worker ? seen - ((unsigned long long)count << FIELD) : seen + (unsigned)count;
        if (!atomic_compare_exchange_weak(&team->ticket, &seen, taken)) continue;
        /* The leader waits for these items: task and argument stand. */
        for (int32_t i = 0; i < count; i++) team->task(team->argument, worker ? end - 1 - i : beginning + i, worker);
        int32_t items = team->items;
        if (atomic_fetch_add(&team->done, count) + count == items && atomic_load(&team->leader_asleep)) {
            pthread_mutex_lock(&team->mutex);
            pthread_cond_signal(&team->finished);
            pthread_mutex_unlock(&team->mutex);
        }
        seen = atomic_load_explicit(&team->ticket, memory_order_acquire);
    }
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int has_items(Team *team) {
    unsigned long long seen = atomic_load(&team->ticket);
    return BEGINNING(seen) < END(seen);
}

static void *helper(void *given) {
    Seat seat = *(Seat *)given;
    free(given);
    Team *team = seat.team;
    while (!atomic_load(&team->stopping)) {
        int spins = 0;
        while (!has_items(team) && spins++ < HELPER_SPINS) pause_briefly();
        if (!has_items(team)) {
            pthread_mutex_lock(&team->mutex);
            atomic_store(&team->asleep, 1);
            while (!has_items(team) && !atomic_load(&team->stopping)) {
                pthread_cond_wait(&team->wake, &team->mutex);
                atomic_store(&team->asleep, 1);
            }
            pthread_mutex_unlock(&team->mutex);
        }
        take_items(team, seat.id);
    }
    return NULL;
}

static void wake_helpers(Team *team) {
    if (!atomic_load(&team->asleep) || !atomic_exchange(&team->asleep, 0)) return;
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
}

void share(Team *team, Task task, const void *argument, int32_t items) {
    if (team->size == 1 || team->alone || items <= 1) {
        for (int32_t item = 0; item < items; item++) task(argument, item, 0);
        return;
    }
    unsigned long long before = atomic_load_explicit(&team->ticket, memory_order_relaxed);
    team->task = task;
    team->argument = argument;
    team->items = items;
    atomic_store(&team->done, 0);
    atomic_store(&team->ticket, ((before >> 2 * FIELD) + 1) << 2 * FIELD | (unsigned long long)items << FIELD);
    wake_helpers(team);
    take_items(team, 0);
    for (int spins = 0; atomic_load_explicit(&team->done, memory_order_acquire) < items; spins++) {
        pause_briefly();
        if (spins < LEADER_SPINS) continue;
        int64_t since = now_ns();
        pthread_mutex_lock(&team->mutex);
        atomic_store(&team->leader_asleep, 1);
        while (atomic_load(&team->done) < items) pthread_cond_wait(&team->finished, &team->mutex);
        atomic_store(&team->leader_asleep, 0);
        pthread_mutex_unlock(&team->mutex);
        team->waited_ns += now_ns() - since;
    }
}

/* Keep helpers off the leader's processor. A system that sees no idle processor (one that is busy with something of low
 * priority is not) wakes them where the leader runs and leaves them there longer than a pass takes. */
static void make_way(Team *team) {
#if defined(__linux__)
    int cpu = sched_getcpu();
    cpu_set_t allowed;
    if (cpu == team->leader_cpu || cpu < 0) return;
    team->leader_cpu = cpu;
    if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed)) return;
    if (CPU_COUNT(&allowed) > 1) CPU_CLR(cpu, &allowed);
    for (int32_t id = 1; id <= team->started; id++) pthread_setaffinity_np(team->threads[id], sizeof allowed, &allowed);
#else
    (void)team;
#endif
}

void begin_pass(Team *team) {
    if (team->alone) team->alone--;
    if (team->size > 1 && !team->alone) make_way(team);
    team->waited_ns = 0;
    team->began_ns = now_ns();
}

void end_pass(Team *team, double gain) {
    if (team->alone || team->size == 1) return;
    if ((double)team->waited_ns > gain * (double)(now_ns() - team->began_ns)) {
        team->alone = team->patience + 1;
        team->patience = 2 * team->patience < MOST_PATIENCE ? 2 * team->patience : MOST_PATIENCE;
    } else {
        team->patience = 1;
    }
}

void *team_memory(Team *team, size_t bytes) {
    if (bytes > team->memory_bytes) {
        size_t rounded = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        free(team->memory);
        team->memory = aligned_alloc(HUGE_PAGE, rounded);
        team->memory_bytes = team->memory ? rounded : 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (team->memory) madvise(team->memory, rounded, MADV_HUGEPAGE);
#endif
    }
    return team->memory;
}

void team_stop(Team *team) {
    atomic_store(&team->stopping, 1);
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
    for (int32_t id = 1; id <= team->started; id++) pthread_join(team->threads[id], NULL);
    free(team->threads);
    free(team->memory);
    free(team);
}

Team *team_start(int32_t size) {
    Team *team = aligned_alloc(LINE, (sizeof(Team) + LINE - 1) / LINE * LINE);
    if (!team) return NULL;
    *team = (Team){.size = size, .patience = 1, .leader_cpu = -1};
    team->threads = calloc((size_t)size, sizeof(pthread_t));
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->wake, NULL);
    pthread_cond_init(&team->finished, NULL);
    for (int32_t id = 1; id < size; id++) {
        Seat *seat = malloc(sizeof(Seat));
        *seat = (Seat){team, id};
        if (pthread_create(&team->threads[id], NULL, helper, seat)) {
            free(seat);
            team_stop(team);
            return NULL;
        }
        team->started = id;
    }
    return team;
}
