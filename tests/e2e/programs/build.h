/*
 * Builds an enclave as any program does: measures and signs it, creates it, adds its pages, initialises and maps it.
 * Included by programs that carry the code of their enclave.
 */
#include <asm/sgx.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "sign.h"

enum { PAGE = 4096, SECINFO_TCS = 0x100, SECINFO_REG = 0x200 };

/* What is built. A page's flags are those of its SECINFO; the mapping of a page of code or data has the same R, W, X. */
struct blueprint {
	const char *key;
	int pages;
	uint64_t size, attributes, xfrm;
	uint32_t miscselect;
	uint8_t (*contents)[PAGE];
	uint64_t (*flags)(int page);
};

/* Fills in the fields that a TCS at whose entry the FS and GS segments begin at `fs` and `gs` has. */
static void lay_out_tcs(uint8_t *page, uint64_t ssa, uint32_t frames, uint64_t entry, uint64_t fs, uint64_t gs)
{
	const uint32_t limits[2] = { UINT32_MAX, UINT32_MAX };

	memcpy(page + 16, &ssa, 8);
	memcpy(page + 28, &frames, 4);
	memcpy(page + 32, &entry, 8);
	memcpy(page + 48, &fs, 8);
	memcpy(page + 56, &gs, 8);
	memcpy(page + 64, limits, 8);
}

static void record(EVP_MD_CTX *hash, const char *leaf, const void *fields, size_t length)
{
	uint8_t block[64] = { 0 };

	memcpy(block, leaf, strlen(leaf));
	memcpy(block + 8, fields, length);
	EVP_DigestUpdate(hash, block, sizeof(block));
}

static void measure(const struct blueprint *plan, uint8_t *measurement)
{
	struct {
		uint32_t ssa_pages;
		uint64_t size;
	} __attribute__((packed)) create = { 1, plan->size };
	EVP_MD_CTX *hash = EVP_MD_CTX_new();

	EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
	record(hash, "ECREATE", &create, sizeof(create));
	for (int i = 0; i < plan->pages; i++) {
		const uint64_t add[2] = { (uint64_t)i * PAGE, plan->flags(i) };

		record(hash, "EADD", add, sizeof(add));
		for (uint64_t at = 0; at < PAGE; at += 256) {
			const uint64_t where = (uint64_t)i * PAGE + at;

			record(hash, "EEXTEND", &where, sizeof(where));
			EVP_DigestUpdate(hash, plan->contents[i] + at, 256);
		}
	}
	EVP_DigestFinal_ex(hash, measurement, NULL);
	EVP_MD_CTX_free(hash);
}

static int protection(const struct blueprint *plan, int page)
{
	const uint64_t flags = plan->flags(page);

	return flags == SECINFO_TCS ? PROT_READ | PROT_WRITE : (int)(flags & 7);
}

/* Maps all pages at their place, neighbours of one protection together. */
static void map_pages(const struct blueprint *plan, uint8_t *base, int file)
{
	for (int first = 0, end; first < plan->pages; first = end) {
		const int wanted = protection(plan, first);

		for (end = first + 1; end < plan->pages && protection(plan, end) == wanted;)
			end++;
		if (mmap(base + first * PAGE, (end - first) * PAGE, wanted, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED)
			fail(2, "map pages from %d on: %s", first, strerror(errno));
	}
}

/* Returns the enclave's base, and its device. */
static uint8_t *build_enclave(const struct blueprint *plan, int *device)
{
	static struct sigstruct signature __attribute__((aligned(PAGE)));
	static struct {
		uint64_t size, base;
		uint32_t ssa_pages, miscselect;
		uint8_t reserved[24];
		uint64_t attributes, xfrm;
		uint8_t rest[PAGE - 64];
	} secs __attribute__((aligned(PAGE)));

	measure(plan, signature.measurement);
	signature.attributes = plan->attributes;
	signature.xfrm = plan->xfrm;
	signature.miscselect = plan->miscselect;
	signature.attributes_mask = signature.xfrm_mask = UINT64_MAX;
	signature.miscmask = UINT32_MAX;
	sign(plan->key, &signature);
	*device = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);
	if (*device < 0)
		fail(2, "open: %s", strerror(errno));
	uint8_t *room = mmap(NULL, 2 * plan->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *base = (uint8_t *)(((uintptr_t)room + plan->size - 1) / plan->size * plan->size);

	secs.size = plan->size;
	secs.base = (uintptr_t)base;
	secs.ssa_pages = 1;
	secs.miscselect = plan->miscselect;
	secs.attributes = plan->attributes;
	secs.xfrm = plan->xfrm;
	struct sgx_enclave_create create = { .src = (uintptr_t)&secs };

	if (ioctl(*device, SGX_IOC_ENCLAVE_CREATE, &create))
		fail(2, "create: %s", strerror(errno));
	for (int i = 0; i < plan->pages; i++) {
		uint64_t secinfo[8] __attribute__((aligned(64))) = { plan->flags(i) };
		struct sgx_enclave_add_pages add = {
			.src = (uintptr_t)plan->contents[i], .offset = (uint64_t)i * PAGE, .length = PAGE,
			.secinfo = (uintptr_t)secinfo, .flags = SGX_PAGE_MEASURE,
		};

		while (ioctl(*device, SGX_IOC_ENCLAVE_ADD_PAGES, &add))
			if (errno != EINTR)
				fail(2, "add page %d: %s", i, strerror(errno));
	}
	struct sgx_enclave_init init = { .sigstruct = (uintptr_t)&signature };
	int code = ioctl(*device, SGX_IOC_ENCLAVE_INIT, &init);

	if (code)
		fail(2, "init: %d %s", code, code < 0 ? strerror(errno) : "");
	map_pages(plan, base, *device);
	return base;
}
