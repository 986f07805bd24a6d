// Preloaded into Azurite: lists blobs and folders in one order by name, and from a given name on, as
// Azure does.
//
// Azurite lists all folders of a page before all blobs. Hadoop's ABFS driver takes a folder's marker
// (the blob "a") and the folder ("a/") for one only in Azure's order, and otherwise lists it twice:
// Spark then fails to commit a partitioned write and reads every partition two times.
//
// Azurite 3.35 does not know the parameter startFrom (service version 2025-05-05), with which delta-rs
// asks for the log from a version on: given the older ones too, it takes the table for damaged.
"use strict";

const http = require("http");
const path = require("path");

const STORE = "blob/persistence/LokiBlobMetadataStore";

const ENTRY = /<(Blob|BlobPrefix)><Name>([^<]*)<\/Name>.*?<\/\1>/gs;
const ENTITIES = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&amp;": "&" };

function order(listing) {
  const begin = listing.indexOf("<Blobs>") + "<Blobs>".length;
  const end = listing.lastIndexOf("</Blobs>");
  const entries = [...listing.slice(begin, end).matchAll(ENTRY)].map(([text, , name]) => ({
    text,
    name: Buffer.from(name.replace(/&\w+;/g, (entity) => ENTITIES[entity] || entity)),
  }));
  entries.sort((a, b) => Buffer.compare(a.name, b.name));
  const length = entries.reduce((sum, { text }) => sum + text.length, 0);
  if (length !== end - begin) {
    throw new Error("Azurite lists blobs in a form that ordered.js does not know.");
  }
  return listing.slice(0, begin) + entries.map(({ text }) => text).join("") + listing.slice(end);
}

// A page begins behind its marker: for the first one that is the last name that could be ahead.
function ahead(name) {
  return name.slice(0, -1) + String.fromCharCode(name.charCodeAt(name.length - 1) - 1) + "\uffff";
}

const { default: Store } = require(path.resolve(path.dirname(process.argv[1]), STORE));
const listBlobs = Store.prototype.listBlobs;
Store.prototype.listBlobs = function (context, ...parameters) {
  const startFrom = context.request.getQuery("startFrom");
  const marker = 6; // among the parameters behind the context
  if (startFrom && !parameters[marker]) {
    parameters[marker] = ahead(startFrom);
  }
  return listBlobs.call(this, context, ...parameters);
};

const write = http.ServerResponse.prototype.write;
http.ServerResponse.prototype.write = function (chunk, ...parameters) {
  // The serializer writes a listing as one string.
  const isListing = typeof chunk === "string" && chunk.includes("</Blobs><NextMarker");
  if (!isListing) {
    return write.call(this, chunk, ...parameters);
  }
  return write.call(this, order(chunk), ...parameters);
};
