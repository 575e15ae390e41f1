/*
 * Stops the program that it's loaded into right before one of its writes to a file, so that it can
 * be killed there. Which one, counted from 1, is in the environment: HALT_AT.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/uio.h>

static void count(void)
{
    static int writes;
    const char *at = getenv("HALT_AT");

    if (at && __atomic_add_fetch(&writes, 1, __ATOMIC_SEQ_CST) == atoi(at))
        raise(SIGSTOP);
}

#define COUNT(result, name, params, args)                 \
    result name params                                    \
    {                                                     \
        result(*real) params = dlsym(RTLD_NEXT, #name);   \
        count();                                          \
        return real args;                                 \
    }

COUNT(ssize_t, pwrite64, (int file, const void *bytes, size_t n, off64_t at), (file, bytes, n, at))
COUNT(ssize_t, pwritev64, (int file, const struct iovec *all, int n, off64_t at), (file, all, n, at))
COUNT(int, ftruncate64, (int file, off64_t n), (file, n))
COUNT(int, fallocate64, (int file, int mode, off64_t at, off64_t n), (file, mode, at, n))
