// Compiles governance/contracts/NetworkAnchor.sol with the pinned solc and prints the artifact that is checked in.
// After a change of the contract: npm ci && npm run artifact
"use strict";

const { createHash } = require("node:crypto");
const { readFileSync } = require("node:fs");
const path = require("node:path");
const solc = require("solc");

const NAME = "NetworkAnchor";
const source = readFileSync(path.join(__dirname, "../../governance/contracts", `${NAME}.sol`));
const settings = {
  // Paris has no PUSH0, so that the same bytes run on every chain since 2022.
  evmVersion: "paris",
  optimizer: { enabled: true, runs: 200 },
  // No metadata trailer: the code depends on nothing but source, version and settings.
  metadata: { appendCBOR: false, bytecodeHash: "none" },
};
const output = JSON.parse(
  solc.compile(
    JSON.stringify({
      language: "Solidity",
      sources: { [`${NAME}.sol`]: { content: source.toString("utf8") } },
      settings: { ...settings, outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "storageLayout"] } } },
    }),
  ),
);
if (output.errors) {
  console.error(output.errors.map((error) => error.formattedMessage).join("\n"));
  process.exit(1);
}
const contract = output.contracts[`${NAME}.sol`][NAME];
const artifact = {
  contractName: NAME,
  compiler: `solc ${solc.version()}`,
  settings,
  sourceSha256: createHash("sha256").update(source).digest("hex"),
  abi: contract.abi,
  storage: Object.fromEntries(contract.storageLayout.storage.map((item) => [item.label, [Number(item.slot), item.offset]])),
  bytecode: `0x${contract.evm.bytecode.object}`,
  deployedBytecode: `0x${contract.evm.deployedBytecode.object}`,
};
process.stdout.write(`${JSON.stringify(artifact, null, 2)}\n`);
